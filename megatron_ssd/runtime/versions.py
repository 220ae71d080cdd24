"""Handles the differences between the supported releases of Megatron-Core, 0.16.1 or 0.19.2.

The rest of the package is the same for both. Each function here looks at what Megatron-Core offers, not at its version
number. docs/reference/versions.md lists what else differs.
"""

from __future__ import annotations

import functools
import inspect
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.serialization import load, save
from torch.distributed import checkpoint

# Warnings for the developers of Megatron-Core. Users of this project cannot act on them.
_WARNINGS = (
    "`sequence_parallel` is set to `True`, but tensor model parallel",
    "The .grad attribute of a Tensor that is not a leaf",
    "torch.distributed is disabled, unavailable or uninitialized",  # 0.19 reads the common state without groups
    "The argument order of load has been changed",
    "MimoModelConfig is experimental",  # 0.19 imports it with its checkpoints
    # They ask for one hardware queue; ``runtime.environment`` chooses the number, and a CPU has none.
    "When using sequence parallelism it is recommended to set",
    "When using async grad allreduce it is recommended to set",
)
# Logger below megatron.core -> start of the message.
_MESSAGES = {
    "models.gpt.gpt_model": "GPTModel IS DEPRECATED",  # 0.19; its successor is not in 0.16
    "transformer.transformer_layer": "Rewrapping ModuleSpec",  # 0.19 converts the form of 0.16
    "distributed.distributed_data_parallel": "DistributedDataParallel: full_param_layout",  # 0.19 chooses it
    "dist_checkpointing.strategies.common": "load_common is deprecated",  # 0.19, of a checkpoint that 0.16 wrote
    "dist_checkpointing.strategies.torch": "MCore's async save is deprecated",  # 0.19, see save_options
}


def quiet_megatron() -> None:
    """Silence messages that users cannot act on. Calling it again does nothing."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name, start in _MESSAGES.items():
        logging.getLogger(f"megatron.core.{name}").addFilter(_without(start))


@functools.cache  # a logger does not add the same filter twice
def _without(start: str) -> Callable[[logging.LogRecord], bool]:
    """A filter that drops messages that start with ``start``."""
    return lambda record: not record.getMessage().startswith(start)


def save_options() -> dict[str, Any]:
    """Keyword arguments that ``dist_checkpointing.save`` needs in this release and 0.16 does not have.

    By default 0.19 writes asynchronously with nvidia-resiliency-ext, which is another package. Both releases have
    Megatron-Core's own writer.
    """
    offered = inspect.signature(save).parameters
    return {"async_strategy": "mcore"} if "async_strategy" in offered else {}


def load_options(path: Path) -> dict[str, Any]:
    """Keyword arguments for ``dist_checkpointing.load`` of the checkpoint ``path``, whichever release wrote it.

    State that is the same on all ranks is in ``common.pt`` in a checkpoint of 0.16, which 0.19 reads too. 0.19 writes
    it as an object among the tensors, and 0.16 needs a strategy that looks there.
    """
    if "common_strategy" not in inspect.signature(load).parameters or (path / "common.pt").exists():
        return {}
    from megatron.core.dist_checkpointing.strategies.common import TorchCommonLoadStrategy  # 0.16 only

    class CommonStateAmongTensors(TorchCommonLoadStrategy):
        def load_common(self, checkpoint_dir: str | Path) -> Any:
            key = ShardedObject("common_state", None, (1,), (0,)).unique_key
            found: dict[str, Any] = {key: io.BytesIO()}
            checkpoint.load(found, storage_reader=checkpoint.FileSystemReader(checkpoint_dir), no_dist=True)
            value = found[key]
            return (torch.load(value, weights_only=True) if isinstance(value, io.BytesIO) else value)[0]

    return {"common_strategy": CommonStateAmongTensors()}
