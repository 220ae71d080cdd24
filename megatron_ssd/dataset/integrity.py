"""Whether a data set's files are what they were when they were made: .bin against .idx against manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_ssd.artifacts.jsonl import iter_jsonl
from megatron_ssd.artifacts.manifest import FILE_NAME, Manifest, check_outputs, read_manifest
from megatron_ssd.dataset.index_file import Index
from megatron_ssd.dataset.indexed import read_indexed
from megatron_ssd.errors import UserError

IDS = "ids.jsonl"
_CHUNK = 1 << 24  # ids looked at together
_REMEDY = "make the data set again (tools/preprocess_data.py with replace=true)"


@dataclass(frozen=True)
class DatasetFiles:
    """A data set as it lies on disk. ``manifest`` is None for a pair of files that no stage published."""

    prefix: Path
    index: Index
    manifest: Manifest | None

    @property
    def are_pairs(self) -> bool:
        """Whether every document is [prompt, response]."""
        return self.index.num_documents > 0 and bool((np.diff(self.index.borders) == 2).all())

    @property
    def vocab_size(self) -> int | None:
        """What the ids must lie below, where the manifest says it."""
        return None if self.manifest is None else self.manifest.config.get("vocab_size")

    @property
    def names(self) -> Path:
        """The file whose line i names the sample of document i; a corpus has none."""
        return self.prefix.parent / IDS

    def ids(self) -> NDArray[Any]:
        """All ids, mapped into memory, [tokens]."""
        if self.index.num_bytes == 0:
            return np.zeros(0, dtype=self.index.dtype)
        return np.asarray(np.memmap(f"{self.prefix}.bin", dtype=self.index.dtype, mode="r"))


def open_files(prefix: Path) -> DatasetFiles:
    """The data set at ``prefix``, with the manifest beside it if that names it.

    Raises:
        UserError: a file is missing, or .bin and .idx do not belong together.
    """
    manifest = read_manifest(prefix.parent) if (prefix.parent / FILE_NAME).is_file() else None
    if manifest is not None and f"{prefix.name}.idx" not in {output["path"] for output in manifest.outputs}:
        manifest = None
    return DatasetFiles(prefix, read_indexed(prefix), manifest)


def check_files(files: DatasetFiles, *, hashes: bool) -> None:
    """Hold the files against each other.

    Args:
        files: what ``open_files`` found, which has compared .bin and .idx.
        hashes: read every file whole and compare its hash with the manifest's.

    Raises:
        UserError: names the first thing that is wrong.
    """
    manifest, folder = files.manifest, files.prefix.parent
    if manifest is not None:
        check_outputs(folder, manifest, fix=_REMEDY, hashes=False)
        _check_counts(files, manifest)
        _check_lines(files)
    check_ids(files, vocab_size=files.vocab_size)
    if manifest is not None and hashes:
        check_outputs(folder, manifest, fix=_REMEDY)


def _check_counts(files: DatasetFiles, manifest: Manifest) -> None:
    """The manifest's counts against the index."""
    lengths, found = files.index.lengths, {"documents": files.index.num_documents}
    found["tokens"] = int(lengths.sum(dtype=np.int64))
    if files.are_pairs:
        found["prompt_tokens"], found["response_tokens"] = (int(lengths[i::2].sum(dtype=np.int64)) for i in (0, 1))
    for name, count in found.items():
        if manifest.counts.get(name, count) != count:
            raise UserError(
                f"file {files.prefix}.idx",
                rule=f"counts {count} {name.replace('_', ' ')} where the manifest has {manifest.counts[name]}",
                fix=_REMEDY,
            )


def _check_lines(files: DatasetFiles) -> None:
    """A line of ``ids.jsonl`` for every document, where a data set names its samples."""
    if not files.names.is_file():
        return
    num_lines = sum(1 for _ in iter_jsonl(files.names))
    if num_lines != files.index.num_documents:
        raise UserError(
            f"file {files.names}", rule=f"has {num_lines} lines for {files.index.num_documents} documents", fix=_REMEDY
        )


def check_ids(files: DatasetFiles, *, vocab_size: int | None) -> None:
    """Raise ``UserError`` for an id outside of the vocabulary; where its size is None, for a negative one alone."""
    ids, end = files.ids(), vocab_size
    for start in range(0, len(ids), _CHUNK):
        part = ids[start : start + _CHUNK]
        for place, outside in ((int(part.argmin()), part.min() < 0), (int(part.argmax()), end and part.max() >= end)):
            if outside:
                raise UserError(
                    f"file {files.prefix}.bin",
                    rule=f"token {start + place} has id {part[place]}, outside the vocabulary of {end or 'any model'}",
                    fix=_REMEDY,
                )
