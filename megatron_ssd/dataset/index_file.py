"""The .idx file of Megatron's indexed data set, read and written by numpy alone.

Little endian: magic, version, id type, number S of sequences and number of document borders, which is one more than the
documents; then S lengths in ids (int32), S offsets in the .bin in bytes (int64), the borders, counted in sequences
(int64), and in a multimodal data set S modes (int8). Sequences lie in the .bin one after the other.

Megatron-Core's classes read and write the same bytes. These here start without torch, which a worker has no other use
for, and keep sixteen bytes a document in memory where ``IndexedDatasetBuilder`` keeps Python lists of Python integers.
"""

from __future__ import annotations

import itertools
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from megatron_ssd.errors import UserError

_MAGIC, _VERSION = b"MMIDIDX\x00\x00", 1
_HEADER = struct.Struct("<9sQBQQ")
# Megatron-Core's codes. Two more are for floating point numbers, which are no ids.
_CODES: dict[int, type[np.integer[Any]]] = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64,
                                            8: np.uint16}  # fmt: skip
_LARGEST_OF_TWO_BYTES = 65500
_REMEDY = "make the data set again"


class Part(Protocol):
    """What decides an index: ids of each sequence, [S], and sequences before each document, [documents + 1]."""

    @property
    def lengths(self) -> NDArray[np.int32]: ...  # noqa: D102

    @property
    def borders(self) -> NDArray[np.int64]: ...  # noqa: D102


@dataclass(frozen=True)
class Index:
    """What an .idx file says, mapped into memory.

    Attributes:
        dtype: of the ids.
        lengths: ids of each sequence, [S].
        offsets: bytes before each sequence in the .bin, [S].
        borders: sequences before each document, and their number, [documents + 1].
        modes: of each sequence, [S], 0 for text; None where the data set has text alone.
    """

    dtype: np.dtype[Any]
    lengths: NDArray[np.int32]
    offsets: NDArray[np.int64]
    borders: NDArray[np.int64]
    modes: NDArray[np.int8] | None

    @property
    def num_documents(self) -> int:
        """Documents in the data set."""
        return len(self.borders) - 1

    @property
    def num_bytes(self) -> int:
        """What the .bin must hold."""
        return int(self.lengths.sum(dtype=np.int64)) * self.dtype.itemsize


def id_type(vocab_size: int) -> np.dtype[Any]:
    """Two bytes for vocabularies below 65,500 and four otherwise, as Megatron-Core chooses."""
    return np.dtype(np.uint16 if vocab_size < _LARGEST_OF_TWO_BYTES else np.int32)


def read_index(path: Path) -> Index:
    """The index at ``path``, checked against itself.

    Raises:
        UserError: the file is not as long as its header says, holds no ids, or its parts do not fit each other.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise _broken(path, size)
    magic, version, code, num_sequences, num_borders = _HEADER.unpack(header)
    expected = _HEADER.size + (4 + 8) * num_sequences + 8 * num_borders
    if (magic, version) != (_MAGIC, _VERSION) or size not in (expected, expected + num_sequences) or not num_borders:
        raise _broken(path, size)
    if code not in _CODES:
        raise UserError(f"file {path}", rule=f"its type {code} is no type of token ids", fix=_REMEDY)
    mapped = np.asarray(np.memmap(path, mode="r"))
    lengths, offsets, borders = _cut(mapped, [("<i4", num_sequences), ("<i8", num_sequences), ("<i8", num_borders)])
    modes = mapped[expected:].view(np.int8) if size > expected else None
    index = Index(np.dtype(_CODES[code]), lengths, offsets, borders, modes)
    _check(path, index)
    return index


def write_index(path: Path, dtype: np.dtype[Any], parts: Callable[[], Iterable[Part]]) -> None:
    """Write the index of one or several data sets, put one after the other.

    Args:
        path: the file.
        dtype: of the ids.
        parts: gives the parts in order; called once for each column, so that no more than one part is in memory.
    """
    counts = [(len(part.lengths), len(part.borders) - 1) for part in parts()]
    num_sequences, num_documents = (sum(column) for column in zip(*counts, strict=True))
    code = next(code for code, kind in _CODES.items() if dtype == kind)
    with path.open("wb") as file:
        file.write(_HEADER.pack(_MAGIC, _VERSION, code, num_sequences, num_documents + 1))
        for part in parts():
            file.write(part.lengths.astype("<i4", copy=False).data)
        for offsets in _offsets((part.lengths for part in parts()), dtype.itemsize):
            file.write(offsets.astype("<i8", copy=False).data)
        file.write(bytes(8))
        for part, before in zip(parts(), itertools.accumulate((count for count, _ in counts), initial=0), strict=False):
            file.write((part.borders[1:] + before).astype("<i8", copy=False).data)


class IndexBuilder:
    """Lengths and borders of a data set while it is written, four bytes a sequence and eight a document."""

    def __init__(self) -> None:
        self._lengths, self._borders = array("i"), array("q", [0])

    def add(self, lengths: Iterable[int]) -> None:
        """Append a document by the lengths of its sequences."""
        self._lengths.extend(lengths)
        self._borders.append(len(self._lengths))

    @property
    def num_documents(self) -> int:
        """Documents so far."""
        return len(self._borders) - 1

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Ids of each sequence, [S]. Nothing can be added while somebody holds this."""
        return np.asarray(self._lengths)

    @property
    def borders(self) -> NDArray[np.int64]:
        """Sequences before each document, [documents + 1]."""
        return np.asarray(self._borders)


def _offsets(lengths: Iterable[NDArray[np.int32]], itemsize: int) -> Iterator[NDArray[np.int64]]:
    """Bytes before each sequence, part by part."""
    before = 0
    for part in lengths:
        ends = before + np.cumsum(part, dtype=np.int64) * itemsize
        yield np.concatenate(([before], ends[:-1])).astype(np.int64) if len(part) else ends
        before = int(ends[-1]) if len(part) else before


def _cut(mapped: NDArray[np.uint8], columns: list[tuple[str, int]]) -> Iterator[NDArray[Any]]:
    """The arrays that follow the header, one after the other."""
    start = _HEADER.size
    for kind, count in columns:
        end = start + np.dtype(kind).itemsize * count
        yield mapped[start:end].view(kind)
        start = end


def _check(path: Path, index: Index) -> None:
    """Raise ``UserError`` unless lengths, offsets and borders of an index belong together."""
    if len(index.lengths) and int(index.lengths.min()) < 0:
        raise UserError(f"file {path}", rule="a sequence has a negative length", fix=_REMEDY)
    for expected in _offsets([index.lengths], index.dtype.itemsize):
        wrong = np.flatnonzero(expected != index.offsets)
        if len(wrong):
            raise UserError(
                f"file {path}",
                rule=f"sequence {wrong[0]} begins at byte {index.offsets[wrong[0]]}, and those before it end at "
                f"{expected[wrong[0]]}",
                fix=_REMEDY,
            )
    borders = index.borders
    if borders[0] != 0 or borders[-1] != len(index.lengths) or (np.diff(borders) < 0).any():
        raise UserError(
            f"file {path}",
            rule=f"its borders of documents do not rise from 0 to the {len(index.lengths)} sequences",
            fix=_REMEDY,
        )


def _broken(path: Path, size: int) -> UserError:
    return UserError(f"file {path}", rule=f"its {size} bytes are no whole Megatron index", fix=_REMEDY)
