"""safetensors files written tensor by tensor.

The library's own ``save_file`` wants every tensor of a file at once and copies it; here one is in hand at a time. The
format is a length (8 bytes, little endian), a JSON header of that length, and the raw bytes of the tensors in the
header's order: https://huggingface.co/docs/safetensors. A file gets its name when it is whole and on disk.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.models.hf_folder import DTYPES, INDEX_FILE, WEIGHTS_FILE
from megatron_ssd.progress import progress

_DTYPE_NAMES = {getattr(torch, name): key for key, (name, _) in DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """What a file says about one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size of the raw values."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """One file and the tensors in it."""

    file_name: str
    specs: tuple[TensorSpec, ...]

    @property
    def header(self) -> bytes:
        """The file's first bytes, up to the first tensor."""
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        start = 0
        for spec in self.specs:
            end = start + spec.num_bytes
            entries[spec.name] = {
                "dtype": _DTYPE_NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [start, end],
            }
            start = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the values begin at a multiple of eight
        return struct.pack("<Q", len(text)) + text

    @property
    def num_bytes(self) -> int:
        """Size of the values in the file, without its header."""
        return sum(spec.num_bytes for spec in self.specs)


def plan_shards(specs: Sequence[TensorSpec], *, max_bytes: int) -> list[Shard]:
    """Cut ``specs``, in their order, into files of at most ``max_bytes`` of values (or one tensor that is larger)."""
    groups: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if groups[-1] and size + spec.num_bytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(spec)
        size += spec.num_bytes
    if len(groups) == 1:
        return [Shard(WEIGHTS_FILE, tuple(specs))]
    return [
        Shard(f"model-{number:05}-of-{len(groups):05}.safetensors", tuple(group))
        for number, group in enumerate(groups, start=1)
    ]


def is_written(folder: Path, shard: Shard) -> bool:
    """Whether ``folder`` holds the whole file. Reads its header only."""
    path = folder / shard.file_name
    if not path.is_file() or path.stat().st_size != len(shard.header) + shard.num_bytes:
        return False
    with path.open("rb") as file:
        return file.read(len(shard.header)) == shard.header


def write_shard(folder: Path, shard: Shard, value_of: Callable[[str], Tensor]) -> None:
    """Write the file, asking ``value_of`` for one tensor after another."""
    unfinished = folder / f"{shard.file_name}.tmp"
    with unfinished.open("wb") as file:
        file.write(shard.header)
        for spec in progress(shard.specs, desc=f"writing {shard.file_name}", unit="weight"):
            value = value_of(spec.name).detach().cpu().contiguous()
            assert (tuple(value.shape), value.dtype) == (spec.shape, spec.dtype), spec.name
            file.write(value.view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(folder / shard.file_name)


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """Say which file holds which tensor, where there is more than one file."""
    if len(shards) == 1:
        return
    index = {
        "metadata": {"total_size": sum(shard.num_bytes for shard in shards)},
        "weight_map": {spec.name: shard.file_name for shard in shards for spec in shard.specs},
    }
    write_atomically(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")
