"""A Hugging Face model folder on disk: its configuration, and names, shapes and slices of its weights.

The safetensors format is a length (8 bytes, little endian), a JSON header of that length and the raw values:
https://huggingface.co/docs/safetensors. Files are read with plain reads into the tensor that is asked for. The
library maps them into memory instead, where every page that was ever touched counts as the process's own until the end.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ssd.artifacts.hub import locate_model
from megatron_ssd.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Shape = tuple[int, ...]

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# The format's name of a type -> torch's name and size in bytes. Quantised weights are not converted.
DTYPES = {"F32": ("float32", 4), "BF16": ("bfloat16", 2), "F16": ("float16", 2)}

_HEADER_LIMIT = 100_000_000  # bytes, the library's own


def resolve_model_folder(path: str | None, revision: str | None = None, *, key: str = "model.path") -> Path:
    """The folder that ``path`` names, found as sampling finds it: here, or downloaded from the Hub.

    Args:
        path: a folder or a Hub id.
        revision: the Hub's commit; None for the newest.
        key: what the user calls it.

    Raises:
        UserError: there is no such model, or the folder holds no ``config.json``.
    """
    folder, _ = locate_model(path, revision, key=key)
    if not (folder / "config.json").is_file():
        raise UserError(f"{key} = {path}", rule="has no config.json", fix=f"set {key} to a Hugging Face model's folder")
    return folder


def read_hf_config(folder: Path) -> dict[str, Any]:
    """Content of the folder's ``config.json``. Raises ``UserError`` where there is none or it is no JSON object."""
    return _read_json(folder / "config.json", missing="name a Hugging Face model's folder")


def _read_json(path: Path, *, missing: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"file {path}", rule="does not exist", fix=missing) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"file {path}", rule=f"is no JSON ({error})", fix="download the model again") from None
    if not isinstance(values, dict):
        raise UserError(f"file {path}", rule="is no JSON object", fix="download the model again")
    return values


@dataclass(frozen=True)
class _Place:
    """Where one weight lies."""

    path: Path
    dtype: str  # as the header says it
    shape: Shape
    offset: int  # of its first byte in the file


class HFWeights:
    """Names, shapes and slices of the safetensors files in ``folder``. Opening reads the headers only.

    ``bytes_read`` counts the values that were read so far.

    Raises:
        UserError: there are no such files, the index names one that is not there or a weight that is not in it, or a
            file is not whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes_read = 0
        self._place: dict[str, _Place] = {}
        for path, promised in _weight_files(folder):
            found = _read_header(path)
            lacking = sorted(promised - found.keys())
            if lacking:
                raise UserError(
                    f"file {path}",
                    rule=f"lacks {len(lacking)} weight(s) that {INDEX_FILE} promises: {listed(lacking)}",
                    fix="download the model again",
                )
            self._place.update(found)

    @property
    def names(self) -> set[str]:
        """Every weight in the folder."""
        return set(self._place)

    def shape(self, name: str) -> Shape:
        """Shape of a weight."""
        return self._place[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Type of a weight.

        Raises:
            UserError: it is none of ``DTYPES``.
        """
        import torch

        place = self._place[name]
        if place.dtype not in DTYPES:
            raise UserError(
                f"weight {name} in {place.path}",
                rule=f"has type {place.dtype}, and known are {', '.join(DTYPES)}",
                fix="use the model's unquantised weights",
            )
        dtype: torch.dtype = getattr(torch, DTYPES[place.dtype][0])
        return dtype

    def read(self, name: str, *, dim: int | None = None, start: int = 0, stop: int | None = None) -> Tensor:
        """A weight, or the part of it from ``start`` to ``stop`` along ``dim``, in its own type.

        Only the bytes of that part are read.
        """
        import torch

        place, dtype = self._place[name], self.dtype(name)
        dim = 0 if dim is None else dim
        length = place.shape[dim]
        start, stop, _ = slice(start, stop).indices(length)
        result = torch.empty((*place.shape[:dim], max(stop - start, 0), *place.shape[dim + 1 :]), dtype=dtype)
        if result.numel() == 0:
            return result
        buffer = result.flatten().view(torch.uint8).numpy().data
        row = math.prod(place.shape[dim + 1 :]) * dtype.itemsize  # bytes of one step along dim
        size = (stop - start) * row
        with place.path.open("rb", buffering=0) as file:
            for block in range(math.prod(place.shape[:dim])):
                offset = place.offset + (block * length + start) * row
                _read_into(file.fileno(), buffer[block * size : (block + 1) * size], offset, place.path)
        self.bytes_read += len(buffer)
        return result


def listed(names: list[str], *, most: int = 5) -> str:
    """The first of ``names``, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _read_into(descriptor: int, buffer: memoryview, offset: int, path: Path) -> None:
    while buffer:
        count = os.preadv(descriptor, [buffer], offset)
        if count == 0:
            raise _not_whole(path, "it became shorter while it was read")
        buffer, offset = buffer[count:], offset + count


def _weight_files(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    """Each file with the weights that the index says it holds (none are said where there is no index)."""
    index = folder / INDEX_FILE
    if not index.is_file():
        yield _existing(folder / WEIGHTS_FILE), set()
        return
    weight_map = _read_json(index, missing="download the model again").get("weight_map")
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


def _read_header(path: Path) -> dict[str, _Place]:
    """Every weight of one file, after its header was compared with the file's size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= min(_HEADER_LIMIT, size - 8):
            raise _not_whole(path, f"a header of {length} bytes in a file of {size}")
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries = {
            name: (value["dtype"], tuple(value["shape"]), *value["data_offsets"]) for name, value in header.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _not_whole(path, f"its header cannot be understood: {error!r}") from None
    first = 8 + length
    end = 0
    for name, (dtype, shape, begin, stop) in sorted(entries.items(), key=lambda entry: entry[1][2:]):
        if begin != end or (dtype in DTYPES and stop - begin != math.prod(shape) * DTYPES[dtype][1]):
            raise _not_whole(path, f"the bytes of {name} are not where they should be")
        end = stop
    if first + end != size:
        raise _not_whole(path, f"it has {size} bytes and its header describes {first + end}")
    return {name: _Place(path, dtype, shape, first + begin) for name, (dtype, shape, begin, _) in entries.items()}


def _not_whole(path: Path, why: str) -> UserError:
    return UserError(f"file {path}", rule=f"is no whole safetensors file ({why})", fix="download or export it again")
