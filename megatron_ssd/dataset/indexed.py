"""Reads or writes Megatron-Core's indexed data set (.bin with its .idx), with checks.

A document is one or more sequences of token ids: [prompt, response] for a sample, one sequence for a corpus text. Ids
are two bytes wide for vocabularies below 65,500 and four otherwise, as in Megatron-Core.

The .bin has the ids of all sequences, one after the other. The .idx is little endian: magic, version, id type, number S
of sequences, number of document boundaries (the number of documents + 1); then S lengths in ids (int32), S offsets in
the .bin in bytes (int64), the boundaries as numbers of sequences (int64), and in a multimodal data set S modes (int8).

Training reads through Megatron-Core's own ``IndexedDataset``. Writing and checking use numpy, because Megatron-Core's
classes import torch in every worker, keep Python lists of all lengths, and check nothing.
"""

from __future__ import annotations

import itertools
import os
import reprlib
import shutil
import struct
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from megatron_ssd.artifacts.hub import refuse_lfs_pointer
from megatron_ssd.errors import UserError

if TYPE_CHECKING:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

DATASET_NAME = "samples"  # run_dir/dataset/samples.bin and .idx
_BUFFER = 1 << 20  # bytes per write
_CHUNK = 1 << 24  # ids per read
_SUFFIXES = (".bin", ".idx")
_MAGIC, _VERSION = b"MMIDIDX\x00\x00", 1
_HEADER = struct.Struct("<9sQBQQ")
# Megatron-Core's codes. Two more codes are for floating point numbers, which are not ids.
_CODES: dict[int, type[np.integer[Any]]] = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64,
                                            8: np.uint16}  # fmt: skip
_LARGEST_OF_TWO_BYTES = 65500


@dataclass(frozen=True)
class Index:
    """The content of an .idx file.

    Attributes:
        dtype: of the ids.
        lengths: ids of each sequence, [S].
        offsets: bytes before each sequence in the .bin, [S].
        boundaries: sequences before each document, and the number of sequences, [documents + 1].
        modes: of each sequence, [S], 0 for text; None if the data set has text only.
    """

    dtype: np.dtype[Any]
    lengths: NDArray[np.int32]
    offsets: NDArray[np.int64]
    boundaries: NDArray[np.int64]
    modes: NDArray[np.int8] | None = None

    @property
    def num_documents(self) -> int:
        """Number of documents in the data set."""
        return len(self.boundaries) - 1

    @property
    def num_bytes(self) -> int:
        """Size of the .bin that belongs to the index."""
        return int(self.lengths.sum(dtype=np.int64)) * self.dtype.itemsize


def id_type(vocab_size: int) -> np.dtype[Any]:
    """Two bytes for vocabularies below 65,500 and four otherwise, as in Megatron-Core."""
    return np.dtype(np.uint16 if vocab_size < _LARGEST_OF_TWO_BYTES else np.int32)


class IndexedWriter:
    """Writes ``prefix.bin`` and ``prefix.idx``. Both get their names at the end of the context, the index last.

    Args:
        prefix: path without suffix; its folder exists.
        vocab_size: ids must be below it.
    """

    def __init__(self, prefix: Path, *, vocab_size: int) -> None:
        self._prefix = prefix
        self._vocab_size = vocab_size
        self._dtype = id_type(vocab_size)
        self._lengths, self._boundaries = array("i"), array("q", [0])  # no Python object per sequence
        self._file = _unfinished(prefix, ".bin").open("wb", buffering=_BUFFER)

    def add(self, *sequences: Sequence[int] | NDArray[Any]) -> None:
        """Append one document. Raises ``UserError`` if an id is outside the vocabulary."""
        for sequence in sequences:
            try:
                # For a list, fromiter takes a fifth less time than asarray, which looks for its shape first.
                is_array = isinstance(sequence, np.ndarray)
                ids = np.asarray(sequence, np.int64) if is_array else np.fromiter(sequence, np.int64, len(sequence))
            except OverflowError:
                raise self._outside(sequence) from None
            # As unsigned numbers, negative ids are the largest of all.
            if len(ids) and int(ids.view(np.uint64).max()) >= self._vocab_size:
                raise self._outside(sequence)
            self._file.write(ids.astype(self._dtype).data)
        self._lengths.extend(map(len, sequences))
        self._boundaries.append(len(self._lengths))

    def _outside(self, sequence: Sequence[int] | NDArray[Any]) -> UserError:
        id_ = next(int(id_) for id_ in sequence if not 0 <= id_ < self._vocab_size)
        return UserError(
            f"token id {reprlib.repr(id_)}",
            rule=f"is outside the vocabulary of model.vocab_size = {self._vocab_size}",
            fix="name the model whose tokenizer made these ids",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        """Force both files to disk and give them their names, unless there was an error."""
        self._file.close()
        if kind is None:
            lengths = np.asarray(self._lengths, dtype=np.int32)
            index = Index(self._dtype, lengths, _offsets(lengths, self._dtype.itemsize), np.asarray(self._boundaries))
            _write_index(_unfinished(self._prefix, ".idx"), self._dtype, lambda: [index])
            _publish(self._prefix)


def join_indexed(parts: Sequence[Path], prefix: Path) -> None:
    """Write the documents of every data set in ``parts`` (paths without suffix) as one data set, in order.

    One part's index is in memory at a time. All parts have the same id width; modes are not copied.
    """
    (dtype,) = {read_indexed(part).dtype for part in parts}
    with _unfinished(prefix, ".bin").open("wb") as joined:
        for part in parts:
            with Path(f"{part}.bin").open("rb") as file:
                shutil.copyfileobj(file, joined, _BUFFER)
    _write_index(_unfinished(prefix, ".idx"), dtype, lambda: map(read_indexed, parts))
    _publish(prefix)


def prefix_of(path: str) -> Path:
    """The path without suffix of a data set that the user named with or without one."""
    for suffix in _SUFFIXES:
        path = path.removesuffix(suffix)
    return Path(path)


def read_indexed(prefix: Path, *, fix: str = "run tools/preprocess_data.py first") -> Index:
    """The index of the data set at ``prefix``, checked against itself and the size of the .bin.

    Args:
        prefix: path without suffix.
        fix: what the user can do if there is no data set.

    Raises:
        UserError: a file is missing or damaged, or the two do not belong together.
    """
    for suffix in reversed(_SUFFIXES):
        path = Path(f"{prefix}{suffix}")
        if not path.is_file():
            raise UserError(f"file {path}", rule="does not exist", fix=fix)
        refuse_lfs_pointer(path)
    index = read_index(Path(f"{prefix}.idx"))
    found = Path(f"{prefix}.bin").stat().st_size
    if found != index.num_bytes:
        raise _damaged(f"{prefix}.bin", f"has {found} bytes, but its index counts {index.num_bytes}")
    return index


def open_indexed(prefix: Path) -> IndexedDataset:
    """The data set at ``prefix``, memory mapped; also one that Megatron-LM's ``tools/preprocess_data.py`` made.

    Raises:
        UserError: as ``read_indexed``, or the data set is empty or not text only.
    """
    check_text(prefix, read_indexed(prefix))
    # Imported here, because it imports torch, which neither workers nor the inspection need.
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    return IndexedDataset(str(prefix))


def mapped_ids(prefix: Path, index: Index) -> NDArray[Any]:
    """All ids of the data set at ``prefix``, memory mapped, [tokens]."""
    if index.num_bytes == 0:
        return np.zeros(0, dtype=index.dtype)
    return np.asarray(np.memmap(f"{prefix}.bin", dtype=index.dtype, mode="r"))


def largest_id(ids: NDArray[Any]) -> int:
    """The largest of memory-mapped ids, read in pieces; 0 if there are none."""
    return max((int(ids[start : start + _CHUNK].max()) for start in range(0, len(ids), _CHUNK)), default=0)


def check_text(prefix: Path, index: Index) -> None:
    """Raise ``UserError`` if the data set at ``prefix`` is empty or not text only."""
    if index.num_bytes == 0:
        raise UserError(
            f"data set {prefix}", rule="contains no token", fix="make it again from samples that are not empty"
        )
    if index.modes is not None and index.modes.any():
        sequence = int(np.flatnonzero(index.modes)[0])
        raise UserError(
            f"data set {prefix}",
            rule=f"is multimodal: sequence {sequence} has mode {index.modes[sequence]}, and text is mode 0",
            fix="use a data set of text only",
        )


def check_ids(prefix: Path, index: Index, *, vocab_size: int | None) -> None:
    """Raise ``UserError`` for an id outside the vocabulary; if ``vocab_size`` is None, only for a negative id."""
    ids, end = mapped_ids(prefix, index), vocab_size
    for start in range(0, len(ids), _CHUNK):
        part = ids[start : start + _CHUNK]
        for token, outside in ((int(part.argmin()), part.min() < 0), (int(part.argmax()), end and part.max() >= end)):
            if outside:
                where = f"token {start + token} has id {part[token]}"
                raise _damaged(f"{prefix}.bin", f"{where}, outside the vocabulary of {end or 'any model'}")


def read_index(path: Path) -> Index:
    """The index at ``path``, memory mapped and checked for consistency.

    Raises:
        UserError: the length of the file differs from what its header says, it is not of token ids, or lengths,
            offsets and boundaries contradict each other.
    """
    size = path.stat().st_size
    incomplete = _damaged(path, f"its {size} bytes are not a complete Megatron index")
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise incomplete
    magic, version, code, num_sequences, num_boundaries = _HEADER.unpack(header)
    expected = _HEADER.size + (4 + 8) * num_sequences + 8 * num_boundaries
    if (magic, version) != (_MAGIC, _VERSION) or size not in (expected, expected + num_sequences) or not num_boundaries:
        raise incomplete
    if code not in _CODES:
        raise _damaged(path, f"its type {code} is not a type of token ids")
    columns = np.asarray(np.memmap(path, mode="r"))[_HEADER.size :]
    ends = np.cumsum([4 * num_sequences, 8 * num_sequences, 8 * num_boundaries])
    lengths, offsets, boundaries, modes = np.split(columns, ends)
    index = Index(
        dtype=np.dtype(_CODES[code]),
        lengths=lengths.view("<i4"),
        offsets=offsets.view("<i8"),
        boundaries=boundaries.view("<i8"),
        modes=modes.view(np.int8) if len(modes) else None,
    )
    _check(path, index)
    return index


def _write_index(path: Path, dtype: np.dtype[Any], parts: Callable[[], Iterable[Index]]) -> None:
    """Write the index of several data sets, one after the other.

    Args:
        path: the file.
        dtype: of the ids.
        parts: gives the parts in order; called once per column, so that only one part is in memory.
    """
    sizes = [(len(part.lengths), part.num_documents, part.num_bytes) for part in parts()]
    num_sequences, num_documents, _ = (sum(column) for column in zip(*sizes, strict=True))
    sequences_before, _, bytes_before = (itertools.accumulate(column, initial=0) for column in zip(*sizes, strict=True))
    code = next(code for code, kind in _CODES.items() if dtype == kind)
    with path.open("wb") as file:
        file.write(_HEADER.pack(_MAGIC, _VERSION, code, num_sequences, num_documents + 1))
        for part in parts():
            file.write(part.lengths.astype("<i4", copy=False).data)
        for part, before in zip(parts(), bytes_before, strict=False):
            file.write((part.offsets + before).astype("<i8", copy=False).data)
        file.write(bytes(8))
        for part, before in zip(parts(), sequences_before, strict=False):
            file.write((part.boundaries[1:] + before).astype("<i8", copy=False).data)


def _offsets(lengths: NDArray[np.int32], itemsize: int) -> NDArray[np.int64]:
    """Bytes before each sequence, [S]."""
    ends = np.cumsum(lengths, dtype=np.int64) * itemsize
    return np.concatenate(([0], ends[:-1])).astype(np.int64) if len(lengths) else ends


def _check(path: Path, index: Index) -> None:
    """Raise ``UserError`` if lengths, offsets and boundaries contradict each other."""
    if len(index.lengths) and int(index.lengths.min()) < 0:
        raise _damaged(path, "a sequence has a negative length")
    expected = _offsets(index.lengths, index.dtype.itemsize)
    wrong = np.flatnonzero(expected != index.offsets)
    if len(wrong):
        begins, end = index.offsets[wrong[0]], expected[wrong[0]]
        raise _damaged(path, f"sequence {wrong[0]} begins at byte {begins}, but the sequences before it end at {end}")
    boundaries = index.boundaries
    if boundaries[0] != 0 or boundaries[-1] != len(index.lengths) or (np.diff(boundaries) < 0).any():
        raise _damaged(path, f"its document boundaries do not rise from 0 to the {len(index.lengths)} sequences")


def _damaged(path: Path | str, what: str) -> UserError:
    return UserError(f"file {path}", rule=what, fix="make the data set again")


def _unfinished(prefix: Path, suffix: str) -> Path:
    return Path(f"{prefix}{suffix}.tmp")


def _publish(prefix: Path) -> None:
    for suffix in _SUFFIXES:
        path = _unfinished(prefix, suffix)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.replace(f"{prefix}{suffix}")
