"""What the two releases of Megatron-Core that this project runs with, 0.16.1 and 0.19.2, do differently.

The rest of the package is written once for both. Where a release needs its own treatment, it is a function here, asked
for by what Megatron-Core offers and not by its number. docs/reference/versions.md says what else differs.
"""

from __future__ import annotations

import functools
import inspect
import io
import logging
import warnings
from pathlib import Path
from typing import Any

# What a release says to its developers, or torch to a release; no user of this project can change any of it.
_WARNINGS = (
    "`sequence_parallel` is set to `True`, but tensor model parallel",
    "The .grad attribute of a Tensor that is not a leaf",
    "torch.distributed is disabled, unavailable or uninitialized",  # 0.19 reads what is the same for all ranks alone
    "The argument order of load has been changed",
    "MimoModelConfig is experimental",  # 0.19 imports it with its checkpoints
)
# Logger below megatron.core -> how its message begins.
_MESSAGES = {
    "models.gpt.gpt_model": "GPTModel IS DEPRECATED",  # 0.19; its successor is not in 0.16
    "transformer.transformer_layer": "Rewrapping ModuleSpec",  # 0.19 turns the form of 0.16 into its own
    "distributed.distributed_data_parallel": "DistributedDataParallel: full_param_layout",  # 0.19 lays it out itself
    "dist_checkpointing.strategies.common": "load_common is deprecated",  # 0.19, of a checkpoint that 0.16 wrote
    "dist_checkpointing.strategies.torch": "MCore's async save is deprecated",  # 0.19, see save_options
}


def quiet_megatron() -> None:
    """Leave out what Megatron-Core and torch say to each other. Calling it again does nothing."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name, start in _MESSAGES.items():
        logger = logging.getLogger(f"megatron.core.{name}")
        if not any(isinstance(each, _Without) for each in logger.filters):
            logger.addFilter(_Without(start))


class _Without(logging.Filter):
    """Drops the messages that begin with ``start``."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self._start = start

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._start)


def save_options() -> dict[str, Any]:
    """Keyword arguments that ``dist_checkpointing.save`` takes in this release beside those of 0.16.

    0.19 has two ways to write asynchronously and takes nvidia-resiliency-ext's by default, which is another package;
    the one that both releases have is Megatron-Core's own.
    """
    from megatron.core.dist_checkpointing.serialization import save

    offered = inspect.signature(save).parameters
    return {"async_strategy": "mcore"} if "async_strategy" in offered else {}


def load_options(path: Path) -> dict[str, Any]:
    """Keyword arguments for ``dist_checkpointing.load`` of the checkpoint ``path``, whichever release wrote it.

    What is the same for all ranks is ``common.pt`` in a checkpoint of 0.16, which 0.19 reads too; 0.19 writes it as one
    more object among the tensors, where 0.16 has to be told to look.
    """
    from megatron.core.dist_checkpointing.serialization import load

    if "common_strategy" not in inspect.signature(load).parameters or (path / "common.pt").exists():
        return {}
    from megatron.core.dist_checkpointing.strategies.common import TorchCommonLoadStrategy

    class CommonAmongTensors(TorchCommonLoadStrategy):
        def load_common(self, checkpoint_dir: str | Path) -> Any:
            return _common_among_tensors(Path(checkpoint_dir))

    return {"common_strategy": CommonAmongTensors()}


def _common_among_tensors(path: Path) -> Any:
    import torch
    from megatron.core.dist_checkpointing.mapping import ShardedObject
    from torch.distributed import checkpoint

    key = ShardedObject("common_state", None, (1,), (0,)).unique_key
    found: dict[str, Any] = {key: io.BytesIO()}
    checkpoint.load(found, storage_reader=checkpoint.FileSystemReader(path), no_dist=True)
    value = found[key]
    return (torch.load(value, weights_only=True) if isinstance(value, io.BytesIO) else value)[0]


@functools.cache
def aux_loss_counts_all_ranks() -> bool:
    """Whether the router multiplies its auxiliary loss by the positions of all tensor and context parallel ranks.

    0.16 takes those of its own rank alone, so that the loss weighs too little where there are several; 0.19 mends it.
    Nothing but the text of the method tells which.
    """
    from megatron.core.transformer.moe.router import TopKRouter

    return "self.tp_cp_group.size()" in inspect.getsource(TopKRouter.attach_and_log_load_balancing_loss)
