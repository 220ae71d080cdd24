"""What is in a checkpoint, and how training goes on from one.

A checkpoint is in Megatron-Core's torch_dist format: weights, optimizer state and the mean of the weights by parameter
name, so that another layout can load it; the loss watch; and each rank's random state, which only the same layout takes
up again. Data order and learning rate follow from the iteration number.

Before anything is loaded, every file is compared with the hashes in ``checkpoint.json``, each rank reading its share.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch.distributed.checkpoint import CheckpointException

from megatron_ssd.errors import UserError
from megatron_ssd.runtime.process_groups import is_rank_zero, on_rank_zero
from megatron_ssd.runtime.versions import load_options
from megatron_ssd.training.checkpoint_folder import (
    BrokenCheckpointError,
    CheckpointFacts,
    check_content,
    move_aside,
    read_facts,
    reading,
)
from megatron_ssd.training.checkpoint_folder import newest_checkpoint as newest_checkpoint
from megatron_ssd.training.checkpoint_writer import CheckpointWriter
from megatron_ssd.training.optimizer_state import METADATA, OptimizerState
from megatron_ssd.training.random_state import random_state, set_random_state
from megatron_ssd.training.state import TrainingState

log = logging.getLogger(__name__)


def save_checkpoint(writer: CheckpointWriter, state: TrainingState) -> None:
    """Save ``state`` through ``writer``. Every rank calls it. Raises as ``CheckpointWriter.save`` does."""
    models = _models(state)
    optimizer = OptimizerState(state.optimizer, models, loading=False)
    writer.save(
        state.iteration,
        _everything(state, models, optimizer),
        optimizer_kind=_kind(state.optimizer),
        layout=current_layout(),
        content_metadata=METADATA,
        # While updates are being skipped the weights may be beyond repair, and older ones are what to go back to.
        may_prune=state.watch.skipped_in_row == 0,
    )


def choose_checkpoint(folder: Path, on_broken: Literal["error", "previous"]) -> tuple[Path, CheckpointFacts] | None:
    """The checkpoint to go on from, checked, the same on every rank; None where there is none.

    With ``on_broken=previous`` a broken one is moved aside under a name that says so, and the one before it is taken.

    Raises:
        UserError: the newest one is broken and ``on_broken`` is ``error``, or no whole one is left.
    """
    while (newest := on_rank_zero(lambda: newest_checkpoint(folder))) is not None:
        _, path = newest
        try:
            return path, check_together(path)
        except BrokenCheckpointError as broken:
            if on_broken == "error":
                raise
            _move_aside(path, broken)
            if on_rank_zero(lambda: newest_checkpoint(folder)) is None:
                raise UserError(
                    f"checkpoint.on_broken = {on_broken}",
                    rule=f"there is no checkpoint before {path}, which is broken",
                    fix="start the same command again to begin from the first iteration",
                ) from None
    return None


def _move_aside(path: Path, broken: BrokenCheckpointError) -> None:
    aside = on_rank_zero(lambda: move_aside(path))
    if is_rank_zero():
        log.warning("checkpoints: %s %s; moved to %s, going on from the one before", broken.what, broken.rule, aside)


def check_together(path: Path) -> CheckpointFacts:
    """``checkpoint.json`` of ``path`` after all files were compared with it, each rank reading its share.

    Raises:
        BrokenCheckpointError: on every rank, whichever found it.
    """
    facts = on_rank_zero(lambda: read_facts(path))
    by_size = sorted(facts.files, key=lambda name: (facts.files[name].bytes, name))
    found: BrokenCheckpointError | None = None
    try:
        check_content(path, facts, by_size[dist.get_rank() :: dist.get_world_size()])
    except BrokenCheckpointError as broken:
        found = broken
    every: list[BrokenCheckpointError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(every, found)
    for broken_or_none in every:
        if broken_or_none is not None:
            raise broken_or_none
    return facts


def load_checkpoint(path: Path, facts: CheckpointFacts, state: TrainingState) -> None:
    """Fill ``state`` from checkpoint ``path``, whatever layout wrote it.

    Raises:
        UserError: the checkpoint is of another model, or of the other kind of optimizer.
    """
    _check_kind(path, facts, state.optimizer)
    same_layout = facts.layout == current_layout()
    models = _models(state)
    optimizer = OptimizerState(state.optimizer, models, loading=True)
    wanted = _everything(state, models, optimizer)
    if not same_layout:
        del wanted["random"]
    try:
        with reading(path):
            loaded = dist_checkpointing.load(wanted, str(path), **load_options(path))
    except (dist_checkpointing.core.CheckpointingException, CheckpointException) as error:
        raise UserError(
            f"checkpoint {path}", rule=f"does not fit the model ({error})", fix="use the model that it was trained as"
        ) from None
    for number, model in enumerate(state.models):
        model.load_state_dict(loaded[f"model{number}"])
    state.watch.load_state_dict(loaded["watch"])
    optimizer.load(loaded["optimizer"], updates=state.watch.seen)
    if state.ema is not None:
        state.ema.load(loaded["ema"])
    state.iteration = facts.iteration
    if same_layout:
        set_random_state(loaded["random"])


def current_layout() -> dict[str, int]:
    """Sizes of the process grid that this process is in."""
    return {
        "world": dist.get_world_size(),
        "tensor": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline": parallel_state.get_pipeline_model_parallel_world_size(),
        "virtual_pipeline": parallel_state.get_virtual_pipeline_model_parallel_world_size() or 1,
        "context": parallel_state.get_context_parallel_world_size(),
        "expert": parallel_state.get_expert_model_parallel_world_size(),
        "expert_tensor": parallel_state.get_expert_tensor_parallel_world_size(),
    }


def _models(state: TrainingState) -> dict[str, Any]:
    return {f"model{number}": model.sharded_state_dict() for number, model in enumerate(state.models)}


def _everything(state: TrainingState, models: dict[str, Any], optimizer: OptimizerState) -> dict[str, Any]:
    """``state`` as Megatron-Core's sharded tensors and objects, by name and place."""
    rank, world = dist.get_rank(), dist.get_world_size()
    result = {
        **models,
        "optimizer": optimizer.tensors,
        "watch": state.watch.state_dict(),
        "random": ShardedObject("random_state", random_state(), (world,), (rank,), replica_id=0),
    }
    if state.ema is not None:
        result["ema"] = state.ema.sharded_state_dict(models)
    return result


def _kind(optimizer: MegatronOptimizer) -> str:
    sharded = any(isinstance(inner, DistributedOptimizer) for inner in optimizer.chained_optimizers)
    return "distributed" if sharded else "whole"


def _check_kind(path: Path, facts: CheckpointFacts, optimizer: MegatronOptimizer) -> None:
    """Megatron-Core keeps the state of its two kinds of optimizer in forms that the other does not read."""
    if facts.optimizer != _kind(optimizer):
        value = facts.optimizer == "distributed"
        raise UserError(
            f"parallel.use_distributed_optimizer = {str(not value).lower()}",
            rule=f"checkpoint {path} was written with {str(value).lower()}",
            fix=f"set parallel.use_distributed_optimizer={str(value).lower()}; the rest of the layout is free",
        )
