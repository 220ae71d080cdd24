"""Data sets as Megatron-LM's own tool writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder


def write_megatron_texts(prefix: Path, texts: Sequence[Sequence[Sequence[int]]], *, vocab_size: int) -> Path:
    """Write ``prefix``.bin and ``prefix``.idx: one document per text, one sequence per sentence; returns ``prefix``."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(vocab_size))
    for sentences in texts:
        builder.add_document([id_ for sentence in sentences for id_ in sentence], [len(ids) for ids in sentences])
    builder.finalize(f"{prefix}.idx")
    return prefix
