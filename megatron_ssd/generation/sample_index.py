"""Where every sample of a plan stands in the stage's work folder: in a finished shard, in a worker's file, or nowhere.

A row in a finished shard counts before the worker's row that it was copied from. The index keeps 12 bytes a planned
sample beside the keys.
"""

from __future__ import annotations

import contextlib
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.jsonl import FileCursor, iter_complete_records
from megatron_ssd.errors import UserError
from megatron_ssd.generation.store import Key
from megatron_ssd.generation.worker_files import row_files
from megatron_ssd.schema import Sample

_NOWHERE, _IN_SHARD = -2, -1  # beside the numbers of workers' files


class SampleIndex:
    """An index of ``folder``, empty until its first ``update``.

    Args:
        folder: the work folder.
        keys: every planned sample, in order, without repeats.
        rows_per_shard: samples of a shard; shard i holds the i-th so many keys, in order.
    """

    def __init__(self, folder: Path, keys: Sequence[Key], *, rows_per_shard: int) -> None:
        self.folder = folder
        self.counts: Counter[str] = Counter()  # samples, response tokens and finish reasons
        self._keys = keys
        self._place = {key: place for place, key in enumerate(keys)}
        assert len(self._place) == len(keys), "two planned samples share a key"
        self._rows_per_shard = rows_per_shard
        self._file = array("i", [_NOWHERE]) * len(keys)
        self._offset = array("q", [0]) * len(keys)
        self._read: dict[Path, tuple[int, FileCursor]] = {}  # number of a worker's file, and how far it was read
        self._whole: set[Path] = set()  # shards that were read

    @property
    def num_missing(self) -> int:
        """Planned samples that stand nowhere."""
        return len(self._keys) - self.counts["samples"]

    def __contains__(self, key: Key) -> bool:
        """Whether the planned sample ``key`` has a row."""
        return self._file[self._place[key]] != _NOWHERE

    def update(self) -> None:
        """Read what was added since the last call.

        It is the whole truth only in the stage's turn. Outside of it another worker may publish meanwhile and take
        files away.

        Raises:
            UserError: a row is broken or not planned, a sample comes twice, or a shard holds anything but its rows.
        """
        for path, keys in self.shards():
            if path not in self._whole:
                with contextlib.suppress(FileNotFoundError):
                    self._read_shard(path, keys)
        for path in row_files(self.folder):
            with contextlib.suppress(FileNotFoundError):
                self._read_worker(path)

    def shards(self) -> list[tuple[Path, Sequence[Key]]]:
        """Every shard of the plan, written or not, with the keys that belong in it."""
        size = self._rows_per_shard
        starts = range(0, len(self._keys), size)
        return [
            (self.folder / f"shard-{number:05d}.jsonl", self._keys[start : start + size])
            for number, start in enumerate(starts)
        ]

    def whereabouts(self, keys: Sequence[Key]) -> list[tuple[Path, int]]:
        """File and byte offset of rows that stand in workers' files."""
        paths = list(self._read)  # in the order of their numbers
        places = [self._place[key] for key in keys]
        assert all(self._file[place] >= 0 for place in places), "a row is in no worker's file"
        return [(paths[self._file[place]], self._offset[place]) for place in places]

    def _read_shard(self, path: Path, keys: Sequence[Key]) -> None:
        rows = 0
        for row, _ in iter_complete_records(path, FileCursor()):
            if rows == len(keys) or Sample.from_json(row).key != keys[rows]:
                raise _misplaced(path)
            place = self._place[keys[rows]]
            if self._file[place] == _NOWHERE:
                self._count(row)
            self._file[place] = _IN_SHARD
            rows += 1
        if rows != len(keys):
            raise _misplaced(path)
        self._whole.add(path)

    def _read_worker(self, path: Path) -> None:
        number, reached = self._read.setdefault(path, (len(self._read), FileCursor()))
        for row, offset in iter_complete_records(path, reached):
            key = Sample.from_json(row).key
            place = self._place.get(key)
            if place is None or self._file[place] >= 0:
                raise UserError(
                    f"{path}:{reached.lines} with sample {key}",
                    rule="that sample is not planned, or comes twice",
                    fix="move that file away, or remove that line, and start again",
                )
            if self._file[place] == _NOWHERE:
                self._count(row)
                self._file[place], self._offset[place] = number, offset

    def _count(self, row: dict[str, Any]) -> None:
        self.counts["samples"] += 1
        self.counts["response_tokens"] += len(row["response_token_ids"])
        self.counts[row["finish_reason"]] += 1


def _misplaced(path: Path) -> UserError:
    return UserError(f"file {path}", rule="is no finished shard of this plan", fix="move it away and start again")
