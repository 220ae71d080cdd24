"""Megatron-Core's indexed data set (.bin and .idx), written whole and opened with checks.

A document is one or more sequences of token ids: [prompt, response] for a sample, one sequence for a corpus text. Ids
are two bytes wide for vocabularies below 65,500 and four otherwise, as Megatron-Core chooses.
"""

from __future__ import annotations

import gc
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from megatron_ssd.errors import UserError

_MAGIC = b"MMIDIDX\x00\x00"
# Magic, version, id type, number of sequences, number of document borders; then a length (int32) and an offset (int64)
# for each sequence and an int64 for each border.
_HEADER = struct.Struct("<9sQBQQ")


class IndexedWriter:
    """Writes ``prefix.bin`` and ``prefix.idx``. Both get their names in ``finish``, the index last.

    Args:
        prefix: path without ending; its folder exists.
        vocab_size: ids must lie below it.
    """

    def __init__(self, prefix: Path, *, vocab_size: int) -> None:
        self._prefix = prefix
        self._vocab_size = vocab_size
        self._dtype = DType.optimal_dtype(vocab_size)
        self._builder = IndexedDatasetBuilder(f"{prefix}.bin.tmp", dtype=self._dtype)
        self.num_documents = 0

    def add(self, *sequences: Sequence[int]) -> None:
        """Append one document. Raises ``UserError`` where an id is outside the vocabulary."""
        ids = np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in sequences])
        if len(ids) and (ids.min() < 0 or ids.max() >= self._vocab_size):
            outside = ids.min() if ids.min() < 0 else ids.max()
            raise UserError(
                f"token id {outside}",
                rule=f"is outside the vocabulary of model.vocab_size = {self._vocab_size}",
                fix="name the model whose tokenizer made these ids",
            )
        self._builder.add_document(ids, [len(sequence) for sequence in sequences])
        self.num_documents += 1

    def append(self, prefix: Path) -> None:
        """Append every document of another data set of the same id width."""
        before = len(self._builder.document_indices)
        gc.freeze()  # add_index ends with a full collection, a second each where torch and its friends are loaded
        try:
            self._builder.add_index(str(prefix))
        finally:
            gc.unfreeze()
        self.num_documents += len(self._builder.document_indices) - before

    def finish(self) -> None:
        """Force both files to disk and give them their names."""
        self._builder.finalize(f"{self._prefix}.idx.tmp")
        for ending in (".bin", ".idx"):
            unfinished = Path(f"{self._prefix}{ending}.tmp")
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            unfinished.replace(f"{self._prefix}{ending}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            self._builder.data_file.close()


def open_indexed(prefix: Path) -> IndexedDataset:
    """The data set at ``prefix``, memory mapped.

    Raises:
        UserError: a file is missing, or the two do not belong together.
    """
    for ending in (".idx", ".bin"):
        path = Path(f"{prefix}{ending}")
        if not path.is_file() or path.stat().st_size == 0:
            raise UserError(f"file {path}", rule="does not exist or is empty", fix="run tools/preprocess_data.py first")
    _check_index(Path(f"{prefix}.idx"))
    dataset = IndexedDataset(str(prefix))
    expected = int(dataset.sequence_lengths.sum(dtype=np.int64)) * np.dtype(dataset.index.dtype).itemsize
    found = Path(f"{prefix}.bin").stat().st_size
    if found != expected:
        raise UserError(
            f"file {prefix}.bin",
            rule=f"holds {found} bytes where its index counts {expected}",
            fix="make the data set again",
        )
    return dataset


def _check_index(path: Path) -> None:
    """Raise ``UserError`` unless the file is as long as its header says."""
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    size = path.stat().st_size
    if len(header) == _HEADER.size:
        magic, version, _, num_sequences, num_borders = _HEADER.unpack(header)
        if (magic, version) == (_MAGIC, 1) and size == _HEADER.size + (4 + 8) * num_sequences + 8 * num_borders:
            return
    raise UserError(f"file {path}", rule=f"its {size} bytes are no whole Megatron index", fix="make the data set again")
