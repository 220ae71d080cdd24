"""Samples on disk, in files whose content does not depend on the order in which responses finish.

While a file fills, rows are appended as they come; once full it is put into the plan's order by one rename. A writer
that was killed anywhere is taken up again by opening the same path with the same plan: whole rows are kept, a torn one
is cut off.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from megatron_ssd.artifacts.jsonl import JsonlWriter, iter_jsonl, iter_jsonl_offsets, truncate_partial_line
from megatron_ssd.errors import UserError
from megatron_ssd.schema import Sample

Key = tuple[str, int]  # problem id, sample index


class SampleFile:
    """One file of planned samples.

    Args:
        path: the JSONL file.
        keys: every sample that belongs in it, in order, without repeats.

    Raises:
        UserError: a row on disk is broken, or is not in the plan.
    """

    def __init__(self, path: Path, keys: Sequence[Key]) -> None:
        self._path = path
        self._place = {key: place for place, key in enumerate(keys)}
        assert len(self._place) == len(keys), "two planned samples share a key"
        self._writer: JsonlWriter | None = None
        self.done: set[Key] = set()
        if path.exists():
            self._take_up()

    @property
    def is_complete(self) -> bool:
        """Whether every planned sample is there."""
        return len(self.done) == len(self._place)

    def write(self, sample: Sample) -> None:
        """Append one planned sample that is not there yet. Safe from a kill once this returns."""
        assert sample.key in self._place, f"{sample.key} is not planned"
        assert sample.key not in self.done, f"{sample.key} is written already"
        self._writer = self._writer or JsonlWriter(self._path)
        self._writer.write(sample.to_json())
        self.done.add(sample.key)
        if self.is_complete:
            self.close()
            self._put_in_order()

    def close(self) -> None:
        """Force what was written to disk."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _take_up(self) -> None:
        """Read what an earlier writer left."""
        truncate_partial_line(self._path)
        for row in iter_jsonl(self._path):
            key = Sample.from_json(row).key
            if key not in self._place or key in self.done:
                raise UserError(
                    f"{self._path} with sample {key}",
                    rule="that sample is not planned for this file, or comes twice",
                    fix=f"move {self._path} away and start again",
                )
            self.done.add(key)
        if self.is_complete:
            self._put_in_order()

    def _put_in_order(self) -> None:
        rows = [(self._place[row["problem_id"], row["sample_index"]], at) for row, at in iter_jsonl_offsets(self._path)]
        if rows == sorted(rows):
            return
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        with self._path.open("rb") as source, temporary.open("wb") as target:
            for _, offset in sorted(rows):
                source.seek(offset)
                target.write(source.readline())
            target.flush()
            os.fsync(target.fileno())
        temporary.replace(self._path)
