"""Saves ``TrainingState`` to checkpoints, from which training resumes.

A checkpoint has Megatron-Core's torch_dist format. It holds weights and EMA by parameter name, so that another layout
can load them; the optimizer's state, in one of the formats of ``optimizer_state``; the counters of the loss spike
detector; and the RNG state of each rank, which only the same layout restores. Data order and learning rate follow from
the iteration number.

Before anything is loaded, every file is compared with the hashes in ``checkpoint.json``, each rank reading its share.
"""

from __future__ import annotations

import functools
import logging
import pickle
import random
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject, ShardedObject
from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch.distributed.checkpoint import CheckpointException

from megatron_ssd.artifacts.atomic import move_aside
from megatron_ssd.artifacts.manifest import package_versions
from megatron_ssd.errors import UserError
from megatron_ssd.runtime.process_groups import on_rank_zero, replicas
from megatron_ssd.runtime.versions import load_options
from megatron_ssd.training.checkpoint_folder import (
    FORMAT_VERSION,
    BrokenCheckpointError,
    CheckpointFacts,
    check_content,
    list_checkpoints,
    read_facts,
    reading,
)
from megatron_ssd.training.checkpoint_writer import CheckpointWriter
from megatron_ssd.training.optimizer_state import OptimizerState
from megatron_ssd.training.step import TrainingState

log = logging.getLogger(__name__)


# Runs that differ in one of these have other gradient buckets. Other layers have their parameters in another order.
_BUCKETS = ("tensor", "pipeline", "virtual_pipeline", "expert", "expert_tensor", "gradient_bucket",
            "transformer_engine", "grouped_experts")  # fmt: skip


def save_checkpoint(writer: CheckpointWriter, state: TrainingState) -> None:
    """Save ``state`` through ``writer``. Every rank calls it. Raises as ``CheckpointWriter.save`` does."""
    models = _models(state)
    kind = _kind(state.optimizer)
    optimizer_format = writer.optimizer_format if kind == "distributed" else "fully_reshardable"
    optimizer = OptimizerState(state.optimizer, models, optimizer_format, loading=False)
    writer.save(
        CheckpointFacts(
            iteration=state.iteration,
            optimizer=kind,
            optimizer_format=optimizer_format,
            layout=_layout(state),
            versions=package_versions(),
        ),
        _sharded_state(state, models, optimizer),
        # While updates are skipped the weights may be beyond recovery, and the user will need an older checkpoint.
        may_prune=state.spikes.skipped_in_row == 0,
    )


def choose_checkpoint(folder: Path, on_broken: Literal["error", "previous"]) -> tuple[Path, CheckpointFacts] | None:
    """The newest checkpoint, after its files are checked; None if there is none. The same on every rank.

    With ``on_broken=previous``, a broken checkpoint is renamed and the one before it is used.

    Raises:
        UserError: the newest one is broken and ``on_broken`` is ``error``, or all of them are broken.
    """
    oldest_broken = None
    while found := on_rank_zero(lambda: list_checkpoints(folder)):
        _, path = found[-1]
        try:
            return path, _check_together(path)
        except BrokenCheckpointError as broken:
            if on_broken == "error":
                raise
            oldest_broken = path
            aside = on_rank_zero(functools.partial(move_aside, path, "broken"))
            if dist.get_rank() == 0:
                log.warning("%s %s; moved to %s, resuming from the one before", broken.what, broken.rule, aside)
    if oldest_broken is not None:
        raise UserError(
            f"checkpoint.on_broken = {on_broken}",
            rule=f"there is no checkpoint before {oldest_broken}, which is broken",
            fix="start the same command again to begin from the first iteration",
        )
    return None


def _check_together(path: Path) -> CheckpointFacts:
    """``checkpoint.json`` of ``path``, after all files were compared with it, each rank reading its share.

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
    for error in filter(None, every):
        raise error
    return facts


def load_checkpoint(path: Path, facts: CheckpointFacts, state: TrainingState) -> None:
    """Fill ``state`` from checkpoint ``path``.

    Raises:
        UserError: the checkpoint has another format, is of another model or the other kind of optimizer, or its
            ``optimizer_format`` cannot be loaded under this layout.
    """
    layout = _layout(state)
    _check_kind(path, facts, state.optimizer)
    _check_layout(path, facts, layout)
    same_layout = facts.layout.items() <= layout.items()  # older checkpoints name fewer sizes
    models = _models(state)
    optimizer = OptimizerState(state.optimizer, models, facts.optimizer_format, loading=True)
    wanted = _sharded_state(state, {name: with_own_norm_states(part) for name, part in models.items()}, optimizer)
    if not same_layout:
        del wanted["rng_state"]
    try:
        with reading(path):
            strategy = FullyParallelLoadStrategyWrapper(get_default_load_sharded_strategy(str(path)), replicas())
            loaded = dist_checkpointing.load(wanted, str(path), strategy, **load_options(path))
    except (dist_checkpointing.core.CheckpointingException, CheckpointException) as error:
        raise UserError(
            f"checkpoint {path}", rule=f"does not fit the model ({error})", fix="use the model that it was trained as"
        ) from None
    for number, model in enumerate(state.models):
        model.load_state_dict(loaded[f"model{number}"])
    state.spikes.load_state_dict(loaded["loss_spikes"])
    optimizer.load(loaded["optimizer"], updates=state.spikes.seen)
    if state.ema is not None:
        state.ema.load(loaded["ema"])
    state.iteration = facts.iteration
    if same_layout:
        set_rng_state(loaded["rng_state"])


def with_own_norm_states(sharded_state: dict[str, Any]) -> dict[str, Any]:
    """The sharded state of a model, to load from a checkpoint of either kind of layers.

    TransformerEngine's norms add an object that is always empty, and Megatron-Core's own do not. It is not read: the
    model keeps its own.
    """
    return {
        name: LocalNonpersistentObject(value.data) if name.endswith("norm._extra_state") else value
        for name, value in sharded_state.items()
    }


def _layout(state: TrainingState) -> dict[str, int]:
    """Sizes of the process grid that this process is in, and of its gradient buckets; kinds of layers, as 0 or 1."""
    config = state.models[0].config
    return {
        "world": dist.get_world_size(),
        "tensor": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline": parallel_state.get_pipeline_model_parallel_world_size(),
        "virtual_pipeline": parallel_state.get_virtual_pipeline_model_parallel_world_size() or 1,
        "context": parallel_state.get_context_parallel_world_size(),
        "expert": parallel_state.get_expert_model_parallel_world_size(),
        "expert_tensor": parallel_state.get_expert_tensor_parallel_world_size(),
        "gradient_bucket": state.chunks[0].ddp_config.bucket_size or 0,
        "transformer_engine": int(config.transformer_impl == "transformer_engine"),
        "grouped_experts": int(config.moe_grouped_gemm),
    }


def _models(state: TrainingState) -> dict[str, Any]:
    return {f"model{number}": model.sharded_state_dict() for number, model in enumerate(state.models)}


def _sharded_state(state: TrainingState, models: dict[str, Any], optimizer: OptimizerState) -> dict[str, Any]:
    """``state`` as Megatron-Core's sharded tensors and objects."""
    rank, world = dist.get_rank(), dist.get_world_size()
    result = {
        **models,
        "optimizer": optimizer.tensors,
        "loss_spikes": state.spikes.state_dict(),
        "rng_state": ShardedObject("rng_state", rng_state(), (world,), (rank,), replica_id=0),
    }
    if state.ema is not None:
        result["ema"] = state.ema.sharded_state_dict(models)
    return result


def rng_state() -> bytes:
    """The RNG states of this process: Python's, numpy's, torch's and those of Megatron-Core's tracker.

    No part of training draws random numbers today (weights come from separate streams, data order from seed and
    epoch, and there is no dropout). They are saved so that a layer that draws some would resume correctly.
    """
    # As arrays: Megatron-Core 0.19 has torch pickle tensors in a way that 0.16 cannot read.
    return pickle.dumps(
        {
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": torch.get_rng_state().numpy(),
            "cuda": torch.cuda.get_rng_state().numpy(),
            "tracker": {name: state.numpy() for name, state in get_cuda_rng_tracker().get_states().items()},
        }
    )


def set_rng_state(saved: bytes) -> None:
    """Restore what ``rng_state`` returned in a process of the same rank and layout."""
    state: dict[str, Any] = pickle.loads(saved)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.cuda.set_rng_state(torch.from_numpy(state["cuda"]))
    torch.set_rng_state(torch.from_numpy(state["torch"]))
    get_cuda_rng_tracker().set_states({name: torch.from_numpy(each) for name, each in state["tracker"].items()})


def _kind(optimizer: MegatronOptimizer) -> str:
    sharded = any(isinstance(inner, DistributedOptimizer) for inner in optimizer.chained_optimizers)
    return "distributed" if sharded else "non-distributed"


def _check_kind(path: Path, facts: CheckpointFacts, optimizer: MegatronOptimizer) -> None:
    """Refuse another format, and the other kind of optimizer: Megatron-Core's two kinds read only their own state."""
    if facts.format_version != FORMAT_VERSION:
        raise UserError(
            f"checkpoint {path}",
            rule=f"has format {facts.format_version}, and training resumes from format {FORMAT_VERSION} only",
            fix="train in another run_dir; export and conversion still read its weights",
        )
    if facts.optimizer != _kind(optimizer):
        value = facts.optimizer == "distributed"
        raise UserError(
            f"parallel.use_distributed_optimizer = {str(not value).lower()}",
            rule=f"checkpoint {path} was written with {str(value).lower()}",
            fix=f"set parallel.use_distributed_optimizer={str(value).lower()}; the rest of the layout may change",
        )


def _check_layout(path: Path, facts: CheckpointFacts, layout: dict[str, int]) -> None:
    """Refuse a layout whose gradient buckets are not those in which the optimizer's state was written."""
    if facts.optimizer_format == "fully_reshardable":
        return
    current = {name: layout[name] for name in _BUCKETS}
    saved = {name: facts.layout.get(name, size) for name, size in current.items()}
    if saved != current:
        raise UserError(
            f"checkpoint {path}",
            rule=f"has optimizer_format {facts.optimizer_format}, which only the same layers in a layout with the same "
            f"sizes can load: it was saved with {_described(saved)}, and this run has {_described(current)}",
            fix="resume with those of the checkpoint; to change them, first save once more with "
            "checkpoint.optimizer_format=fully_reshardable",
        )


def _described(layout: dict[str, int]) -> str:
    """For example ``tensor 2, pipeline 1``."""
    return ", ".join(f"{name} {size}" for name, size in layout.items())
