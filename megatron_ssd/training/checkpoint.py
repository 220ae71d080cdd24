"""Distributed checkpoints that appear whole.

A checkpoint is ``iter_0000250/`` in Megatron-Core's torch_dist format: weights and optimizer state by parameter name,
so that another layout can load it. It is written as ``iter_0000250.partial``, forced to disk, and renamed last. What
does not carry the final name is not a checkpoint. Data order and learning rate follow from the iteration number, and no
part of training draws random numbers, so nothing else is kept.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch.distributed.checkpoint import CheckpointException

from megatron_ssd.artifacts.stage import fsync_path
from megatron_ssd.errors import UserError
from megatron_ssd.training import adam_state

_NAME = re.compile(r"iter_(\d{7})")
_NO_SPACE = 1 << 16  # bytes; below this a failed write is put down to a full disk
_FACTS_FILE = "checkpoint.json"
# The one form of the distributed optimizer's state that any other layout can load.
_METADATA = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}


def newest_checkpoint(folder: Path) -> tuple[int, Path] | None:
    """(iteration, folder) of the newest complete checkpoint below ``folder``; None where there is none."""
    found = [(int(match[1]), path) for path in folder.glob("iter_*") if (match := _NAME.fullmatch(path.name))]
    return max(found, default=None)


def save_checkpoint(
    folder: Path,
    iteration: int,
    chunks: Sequence[GPTModel | DistributedDataParallel],
    optimizer: MegatronOptimizer,
) -> Path:
    """Write ``folder/iter_...``. Every rank calls it; returns when the checkpoint has its final name."""
    final = folder / f"iter_{iteration:07d}"
    partial = final.with_name(final.name + ".partial")
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed while writing it
        partial.mkdir(parents=True)
    dist.barrier()
    state = _model_state(chunks)
    state["optimizer"] = optimizer.sharded_state_dict(state, metadata=_METADATA)
    _write(state, partial)
    if dist.get_rank() == 0:
        facts = {"iteration": iteration, "optimizer": _kind(optimizer)}
        (partial / _FACTS_FILE).write_text(json.dumps(facts), encoding="utf-8")
        for path in [*partial.iterdir(), partial]:
            fsync_path(path)
        partial.rename(final)
        fsync_path(folder)
    dist.barrier()
    return final


def load_checkpoint(
    path: Path, chunks: Sequence[GPTModel | DistributedDataParallel], optimizer: MegatronOptimizer | None = None
) -> None:
    """Load weights, and the optimizer's state where ``optimizer`` is given, whatever layout wrote them.

    Raises:
        UserError: the checkpoint is of another model, or of the other kind of optimizer.
    """
    if optimizer is not None:
        _check_kind(path, optimizer)
    state = _model_state(chunks)
    if optimizer is not None:
        adam_state.allocate(optimizer)
        state["optimizer"] = optimizer.sharded_state_dict(state, is_loading=True, metadata=_METADATA)
    try:
        loaded = dist_checkpointing.load(state, str(path))
    except dist_checkpointing.core.CheckpointingException as error:
        raise UserError(
            f"checkpoint {path}", rule=f"does not fit the model ({error})", fix="use the model that it was trained as"
        ) from None
    for number, chunk in enumerate(_unwrapped(chunks)):
        chunk.load_state_dict(loaded[f"model{number}"])
    if optimizer is not None:
        with adam_state.loadable(optimizer):
            optimizer.load_state_dict(loaded["optimizer"])


def _kind(optimizer: MegatronOptimizer) -> str:
    sharded = any(isinstance(inner, DistributedOptimizer) for inner in optimizer.chained_optimizers)
    return "distributed" if sharded else "whole"


def _check_kind(path: Path, optimizer: MegatronOptimizer) -> None:
    """Megatron-Core keeps the state of its two kinds of optimizer in forms that the other does not read."""
    written = json.loads((path / _FACTS_FILE).read_text(encoding="utf-8"))["optimizer"]
    if written != _kind(optimizer):
        value = written == "distributed"
        raise UserError(
            f"parallel.use_distributed_optimizer = {str(not value).lower()}",
            rule=f"checkpoint {path} was written with {str(value).lower()}",
            fix=f"set parallel.use_distributed_optimizer={str(value).lower()}; the rest of the layout is free",
        )


def _write(state: dict[str, Any], folder: Path) -> None:
    """Write ``state``, this rank's part and rank 0's common one. Raises ``OSError`` (ENOSPC) where the disk is full."""
    # The writing is done before ``save`` returns, so a plain queue takes the results. Megatron-Core's own is a process
    # beside each rank that takes seconds to start and outlives a killed run.
    filesystem_async._results_queue = queue.Queue()
    try:
        dist_checkpointing.save(state, str(folder), content_metadata=_METADATA)
    except (Exception, CheckpointException) as error:  # the second is no Exception
        # What failed is told in words, through worker processes and from other ranks.
        if os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(folder).free < _NO_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise


def _model_state(chunks: Sequence[GPTModel | DistributedDataParallel]) -> dict[str, Any]:
    return {f"model{number}": chunk.sharded_state_dict() for number, chunk in enumerate(_unwrapped(chunks))}


def _unwrapped(chunks: Sequence[GPTModel | DistributedDataParallel]) -> list[GPTModel]:
    """The models themselves: their names are the checkpoint's, with no wrapper's prefix."""
    return [chunk.module if isinstance(chunk, DistributedDataParallel) else chunk for chunk in chunks]
