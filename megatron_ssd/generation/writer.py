"""Samples on disk, in shards whose content does not depend on the order in which responses finish.

Shard ``i`` holds the plan's rows ``i * rows_per_shard`` and following. While it fills, rows are appended as they come;
once full it is put into the plan's order by one rename. A writer that was killed anywhere is taken up again by opening
the same folder with the same plan: whole rows are kept, a torn one is cut off.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from megatron_ssd.artifacts.jsonl import JsonlWriter, heal, iter_jsonl, iter_jsonl_offsets
from megatron_ssd.errors import UserError
from megatron_ssd.schema import Sample

Key = tuple[str, int]


class SampleShards:
    """Writer of one run's samples.

    Args:
        folder: where the shards are.
        keys: (problem id, sample index) of every planned sample, in order, without repeats.
        rows_per_shard: rows of every shard but the last.

    Raises:
        UserError: a row on disk is broken, or is not in the plan.
    """

    def __init__(self, folder: Path, keys: Sequence[Key], *, rows_per_shard: int) -> None:
        self._folder = folder
        self._rows_per_shard = rows_per_shard
        self._place = {key: place for place, key in enumerate(keys)}
        assert len(self._place) == len(keys), "two planned samples share a key"
        self._missing = [
            len(keys[start : start + rows_per_shard]) for start in range(0, len(keys), rows_per_shard)
        ]  # rows to come, of each shard
        self._open: dict[int, JsonlWriter] = {}
        self.done: set[Key] = set()
        self.counts: Counter[str] = Counter()  # samples, response tokens and finish reasons, of all rows on disk
        for shard in range(len(self._missing)):
            self._take_up(shard)

    def write(self, sample: Sample) -> None:
        """Append one planned sample that is not there yet. Safe from a kill once this returns."""
        assert sample.key not in self.done, f"{sample.key} is written already"
        shard = self._place[sample.key] // self._rows_per_shard
        if shard not in self._open:
            self._open[shard] = JsonlWriter(self._path(shard))
        row = sample.to_json()
        self._open[shard].write(row)
        self._count(shard, row)
        if self._missing[shard] == 0:
            self._open.pop(shard).close()
            self._put_in_order(shard)

    def _take_up(self, shard: int) -> None:
        """Read what an earlier writer left of a shard."""
        path = self._path(shard)
        if not path.exists():
            return
        heal(path)
        for row in iter_jsonl(path):
            key = Sample.from_json(row).key
            if self._place.get(key, -1) // self._rows_per_shard != shard or key in self.done:
                raise UserError(
                    f"{path} with sample {key}",
                    rule="that sample is not planned for this shard, or comes twice",
                    fix=f"move {self._folder} away and sample again",
                )
            self._count(shard, row)
        if self._missing[shard] == 0:
            self._put_in_order(shard)

    def _count(self, shard: int, row: dict[str, Any]) -> None:
        self.done.add((row["problem_id"], row["sample_index"]))
        self._missing[shard] -= 1
        self.counts["samples"] += 1
        self.counts["response_tokens"] += len(row["response_token_ids"])
        self.counts[row["finish_reason"]] += 1

    def _put_in_order(self, shard: int) -> None:
        path = self._path(shard)
        rows = [(self._place[row["problem_id"], row["sample_index"]], at) for row, at in iter_jsonl_offsets(path)]
        if rows == sorted(rows):
            return
        temporary = path.with_name(f".{path.name}.tmp")
        with path.open("rb") as source, temporary.open("wb") as target:
            for _, offset in sorted(rows):
                source.seek(offset)
                target.write(source.readline())
            target.flush()
            os.fsync(target.fileno())
        temporary.replace(path)

    def _path(self, shard: int) -> Path:
        return self._folder / f"shard-{shard:05d}.jsonl"

    def close(self) -> None:
        """Force open shards to disk and close them."""
        for writer in self._open.values():
            writer.close()
        self._open = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
