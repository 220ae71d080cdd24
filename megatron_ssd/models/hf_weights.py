"""Reads slices of the safetensors files in a Hugging Face folder."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_ssd.artifacts.hf_config import read_json_object
from megatron_ssd.artifacts.hub import refuse_lfs_pointer
from megatron_ssd.errors import UserError

Shape = tuple[int, ...]

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# The format's name of a type -> torch's type. Quantised weights are not converted.
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class HFWeights:
    """The weights in ``folder``. Opening reads headers only.

    The files are mapped into memory, and what is read is copied out of the mapping. So a process owns only the tensors
    that it asked for; the kernel may drop the mapped pages at any time.

    ``num_bytes_read`` counts the bytes of all tensors read so far.

    Raises:
        UserError: there are no such files, the index names a file that does not exist or a weight that is not in it,
            or a file is incomplete.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_bytes_read = 0
        self._path_of: dict[str, Path] = {}
        self._slices: dict[str, Any] = {}  # safetensors' lazy slices, which keep their file open
        for path, indexed_names in _weight_files(folder):
            found = _open_slices(path)
            missing = sorted(indexed_names - found.keys())
            if missing:
                raise UserError(
                    f"file {path}",
                    rule=f"lacks {len(missing)} weight(s) that {INDEX_FILE} names: {abbreviate(missing)}",
                    fix="download the model again",
                )
            self._slices.update(found)
            self._path_of.update(dict.fromkeys(found, path))

    @property
    def names(self) -> set[str]:
        """Names of all weights in the folder."""
        return set(self._slices)

    def shape(self, name: str) -> Shape:
        """Shape of a weight."""
        return tuple(self._slices[name].get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Type of a weight.

        Raises:
            UserError: it is not in ``DTYPES``.
        """
        dtype = self._slices[name].get_dtype()
        if dtype not in DTYPES:
            raise UserError(
                f"weight {name} in {self._path_of[name]}",
                rule=f"has type {dtype}; supported are {', '.join(DTYPES)}",
                fix="use the model's unquantised weights",
            )
        return DTYPES[dtype]

    def read(self, name: str, *, dim: int = 0, start: int = 0, stop: int | None = None) -> Tensor:
        """A weight, or the part of it from ``start`` to ``stop`` along ``dim``, in its own type."""
        self.dtype(name)
        index = (*(slice(None) for _ in range(dim)), slice(start, stop)) if self.shape(name) else ...
        value: Tensor = self._slices[name][index].clone(memory_format=torch.contiguous_format)
        self.num_bytes_read += value.nbytes
        return value


_MOST_NAMED = 5  # weights in a message


def abbreviate(names: list[str]) -> str:
    """The first of ``names``, and how many more there are."""
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _open_slices(path: Path) -> dict[str, Any]:
    try:
        file = safe_open(path, framework="pt")
        return {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is not a mapping
    except SafetensorError as error:
        refuse_lfs_pointer(path)
        raise UserError(
            f"file {path}", rule=f"is not a complete safetensors file ({error})", fix="download or export it again"
        ) from None


def _weight_files(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    """Each file with the names that the index lists for it; without an index, one file and no names."""
    index = folder / INDEX_FILE
    if not index.is_file():
        yield _existing(folder / WEIGHTS_FILE), set()
        return
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"file {index}", rule="has no weight_map", fix="download the model again")
    pairs = sorted((str(file), str(name)) for name, file in weight_map.items())
    for file, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
        yield _existing(folder / file), {name for _, name in group}


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"file {path}", rule="does not exist, and the weights are read from it",
                        fix="download the model again, as safetensors")  # fmt: skip
    return path
