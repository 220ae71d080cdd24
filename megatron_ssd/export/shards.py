"""Writes safetensors files tensor by tensor.

The library's ``save_file`` needs all tensors of a file at once and copies them; here one tensor is in memory at a time.
The format is a length (8 bytes, little endian), a JSON header of that length, and the raw bytes of the tensors in the
order of the header: https://huggingface.co/docs/safetensors. A file gets its final name when it is complete and on
disk.
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
from megatron_ssd.models.hf_weights import DTYPES, INDEX_FILE, WEIGHTS_FILE
from megatron_ssd.progress import progress

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and type of one tensor in a file."""

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
        text += b" " * (-len(text) % 8)  # the values start at a multiple of eight
        return struct.pack("<Q", len(text)) + text

    @property
    def num_bytes(self) -> int:
        """Size of the values in the file, without its header."""
        return sum(spec.num_bytes for spec in self.specs)


def plan_shards(specs: Sequence[TensorSpec], *, max_bytes: int) -> list[Shard]:
    """Distribute ``specs``, in order, over files of at most ``max_bytes`` of values (or one larger tensor)."""
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
    """Whether ``folder`` has the complete file. Reads its header only."""
    path = folder / shard.file_name
    if not path.is_file() or path.stat().st_size != len(shard.header) + shard.num_bytes:
        return False
    with path.open("rb") as file:
        return file.read(len(shard.header)) == shard.header


def write_shard(folder: Path, shard: Shard, value_of: Callable[[str], Tensor]) -> None:
    """Write the file, calling ``value_of`` for one tensor after another."""
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
    """Write the index of tensors by file if there is more than one file."""
    if len(shards) == 1:
        return
    index = {
        "metadata": {"total_size": sum(shard.num_bytes for shard in shards)},
        "weight_map": {spec.name: shard.file_name for shard in shards for spec in shard.specs},
    }
    write_atomically(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")
