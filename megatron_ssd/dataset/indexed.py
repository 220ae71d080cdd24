"""Megatron-Core's indexed data set (.bin and .idx), written whole and opened with checks.

A document is one or more sequences of token ids: [prompt, response] for a sample, one sequence for a corpus text. Ids
are two bytes wide for vocabularies below 65,500 and four otherwise, as Megatron-Core chooses. Writing and checking need
numpy alone; what training reads from is Megatron-Core's own ``IndexedDataset``.
"""

from __future__ import annotations

import os
import reprlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from megatron_ssd.dataset.index_file import Index, IndexBuilder, id_type, read_index, write_index
from megatron_ssd.errors import UserError

if TYPE_CHECKING:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

DATASET_NAME = "samples"  # run_dir/dataset/samples.bin and .idx
_BUFFER = 1 << 20  # bytes written at once
_ENDINGS = (".bin", ".idx")


class IndexedWriter:
    """Writes ``prefix.bin`` and ``prefix.idx``. Both get their names in ``finish``, the index last.

    Args:
        prefix: path without ending; its folder exists.
        vocab_size: ids must lie below it.
    """

    def __init__(self, prefix: Path, *, vocab_size: int) -> None:
        self._prefix = prefix
        self._vocab_size = vocab_size
        self._dtype = id_type(vocab_size)
        self._index = IndexBuilder()
        self._file = _unfinished(prefix, ".bin").open("wb", buffering=_BUFFER)

    @property
    def num_documents(self) -> int:
        """Documents so far."""
        return self._index.num_documents

    def add(self, *sequences: Sequence[int] | NDArray[Any]) -> None:
        """Append one document. Raises ``UserError`` where an id is outside the vocabulary."""
        for sequence in sequences:
            try:
                # Of a list, fromiter takes a fifth less time than asarray, which looks for its shape first.
                is_array = isinstance(sequence, np.ndarray)
                ids = np.asarray(sequence, np.int64) if is_array else np.fromiter(sequence, np.int64, len(sequence))
            except OverflowError:
                raise self._outside(sequence) from None
            # As unsigned numbers, negative ids are the largest of all.
            if len(ids) and int(ids.view(np.uint64).max()) >= self._vocab_size:
                raise self._outside(sequence)
            self._file.write(ids.astype(self._dtype).data)
        self._index.add(map(len, sequences))

    def _outside(self, sequence: Sequence[int] | NDArray[Any]) -> UserError:
        id_ = next(int(id_) for id_ in sequence if not 0 <= id_ < self._vocab_size)
        return UserError(
            f"token id {reprlib.repr(id_)}",
            rule=f"is outside the vocabulary of model.vocab_size = {self._vocab_size}",
            fix="name the model whose tokenizer made these ids",
        )

    def finish(self) -> None:
        """Force both files to disk and give them their names."""
        self._file.close()
        write_index(_unfinished(self._prefix, ".idx"), self._dtype, lambda: [self._index])
        _publish(self._prefix)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            self._file.close()


def join_indexed(parts: Sequence[Path], prefix: Path) -> None:
    """Write the documents of every data set in ``parts`` (paths without ending) as one, in order.

    One part's index is in memory at a time. All parts have the same id width; modes are not taken over.
    """
    (dtype,) = {read_indexed(part).dtype for part in parts}
    with _unfinished(prefix, ".bin").open("wb") as joined:
        for part in parts:
            with Path(f"{part}.bin").open("rb") as file:
                shutil.copyfileobj(file, joined, _BUFFER)
    write_index(_unfinished(prefix, ".idx"), dtype, lambda: map(read_indexed, parts))
    _publish(prefix)


def prefix_of(path: str) -> Path:
    """The path without ending of a data set that the user named with one or without."""
    for ending in _ENDINGS:
        path = path.removesuffix(ending)
    return Path(path)


def read_indexed(prefix: Path, *, fix: str = "run tools/preprocess_data.py first") -> Index:
    """The index of the data set at ``prefix``, checked against itself and the size of the .bin.

    Args:
        prefix: path without ending.
        fix: what the user does where there is none.

    Raises:
        UserError: a file is missing, or the two do not belong together.
    """
    for ending in reversed(_ENDINGS):
        path = Path(f"{prefix}{ending}")
        if not path.is_file():
            raise UserError(f"file {path}", rule="does not exist", fix=fix)
    index = read_index(Path(f"{prefix}.idx"))
    found = Path(f"{prefix}.bin").stat().st_size
    if found != index.num_bytes:
        raise UserError(
            f"file {prefix}.bin",
            rule=f"holds {found} bytes where its index counts {index.num_bytes}",
            fix="make the data set again",
        )
    return index


def open_indexed(prefix: Path) -> IndexedDataset:
    """The data set at ``prefix``, memory mapped; also one that Megatron-LM's ``tools/preprocess_data.py`` made.

    Raises:
        UserError: what ``read_indexed`` raises, or the data set is empty or holds something other than text.
    """
    check_text(prefix, read_indexed(prefix))
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    return IndexedDataset(str(prefix))


def check_text(prefix: Path, index: Index) -> None:
    """Raise ``UserError`` where the data set at ``prefix`` is empty or holds something other than text."""
    if index.num_bytes == 0:
        raise UserError(
            f"data set {prefix}", rule="holds no token", fix="make it again from samples that are not empty"
        )
    if index.modes is not None and index.modes.any():
        sequence = int(np.flatnonzero(index.modes)[0])
        raise UserError(
            f"data set {prefix}",
            rule=f"is multimodal: sequence {sequence} has mode {index.modes[sequence]}, and 0 is text",
            fix="use a data set of text alone",
        )


def _unfinished(prefix: Path, ending: str) -> Path:
    return Path(f"{prefix}{ending}.tmp")


def _publish(prefix: Path) -> None:
    for ending in _ENDINGS:
        path = _unfinished(prefix, ending)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.replace(f"{prefix}{ending}")
