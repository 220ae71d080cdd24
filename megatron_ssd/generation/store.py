"""Stores planned samples resumably: writers append records to files, which are merged into ordered shards.

A record counts once its line is complete. Writers may be killed at any time and restarted in any number: existing
records are found in any of the files, and an incomplete last line is ignored. The shards do not depend on the order in
which responses finished, on the workers that sampled them, or on the moment at which a writer or a merge was killed.

The workers of a sampling run share a folder. ``worker-0-of-2.jsonl`` has the records of worker 0 of 2, which keeps the
file locked (flock) while it runs; ``worker-0-of-2.spans.json`` has the times at which it was running.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.atomic import fsync_path
from megatron_ssd.artifacts.jsonl import FileCursor, iter_complete_records
from megatron_ssd.artifacts.locks import try_lock
from megatron_ssd.artifacts.spans import SpanNotes
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.generation import WorkerConfig
from megatron_ssd.errors import UserError
from megatron_ssd.progress import progress
from megatron_ssd.schema import Sample

Key = tuple[str, int]  # problem id, sample index
Shard = tuple[Path, Sequence[Key]]  # a file, and the samples that belong in it, in order

AT_WORK = "at work"  # the activity of a worker from its start to its end
_NOWHERE, _IN_SHARD = -2, -1  # besides the numbers of appended files
_WORKER = re.compile(r"worker-(\d+)-of-(\d+)\.jsonl")


class SampleStore:
    """An index of the samples of ``shards``, empty until the first ``update``. It takes 12 bytes per planned sample.

    Args:
        shards: every file that is to be made. No sample is planned twice.
        appended: lists the files that writers append to. One of them may itself be a shard, to be put in order.
    """

    def __init__(self, shards: Sequence[Shard], appended: Callable[[], Iterable[Path]]) -> None:
        self.counts: Counter[str] = Counter()  # samples, response tokens and finish reasons
        self._shards = shards
        self._appended = appended
        keys = [key for _, some in shards for key in some]
        self._index = {key: index for index, key in enumerate(keys)}
        assert len(self._index) == len(keys), "two planned samples share a key"
        self._file = array("i", [_NOWHERE]) * len(keys)
        self._offset = array("q", [0]) * len(keys)
        self._read: dict[Path, tuple[int, FileCursor]] = {}  # number of an appended file, and how far it was read
        self._finished: set[Path] = set()  # shards that are complete and in order

    @property
    def num_missing(self) -> int:
        """Planned samples without a record."""
        return len(self._index) - self.counts["samples"]

    def __contains__(self, key: Key) -> bool:
        """Whether the planned sample ``key`` has a record."""
        return self._file[self._index[key]] != _NOWHERE

    def update(self) -> None:
        """Read what was added since the last call.

        If several processes write, this is complete only while holding the stage's lock. Without it, another worker may
        publish at the same time and remove files.

        Raises:
            UserError: a record is broken or not planned, a sample is repeated, or a shard holds anything but its
                samples.
        """
        appended = list(self._appended())
        for path, keys in self._shards:
            if path not in self._finished and path not in appended:
                with contextlib.suppress(FileNotFoundError):
                    self._read_shard(path, keys)
        for path in appended:
            with contextlib.suppress(FileNotFoundError):
                self._read_appended(path)

    def merge(self) -> dict[str, str]:
        """Write the shards that are not finished. Nothing may be missing, and no other process may write.

        Each shard appears in one step, so a killed merge resumes at the first that is missing. Records are copied byte
        for byte.

        Returns:
            Name -> SHA-256 of the shards that this call wrote.
        """
        assert self.num_missing == 0
        paths = list(self._read)  # in the order of their numbers
        hashes = {}
        unfinished = [shard for shard in self._shards if not self._is_finished(*shard)]
        for path, keys in progress(unfinished, desc="writing shards", unit="shard"):
            indices = [self._index[key] for key in keys]
            hashes[path.name] = _copy_lines(path, [(paths[self._file[i]], self._offset[i]) for i in indices])
            self._finished.add(path)
        for folder in {path.parent for path, _ in self._shards}:
            fsync_path(folder)  # the names of the shards, before anything that they were made from is removed
        return hashes

    def _is_finished(self, path: Path, keys: Sequence[Key]) -> bool:
        """Whether a shard was read or written, or an appended file already is the shard."""
        if path in self._finished or path not in self._read:
            return path in self._finished
        indices = [self._index[key] for key in keys]
        offsets = [self._offset[i] for i in indices]
        return {self._file[i] for i in indices} <= {self._read[path][0]} and offsets == sorted(offsets)

    def _read_shard(self, path: Path, keys: Sequence[Key]) -> None:
        count = 0
        for record, _ in iter_complete_records(path, FileCursor()):
            if count == len(keys) or Sample.from_json(record).key != keys[count]:
                raise _misplaced(path)
            index = self._index[keys[count]]
            if self._file[index] == _NOWHERE:
                self._count(record)
            self._file[index] = _IN_SHARD  # and not in the worker's file that it was copied from
            count += 1
        if count != len(keys):
            raise _misplaced(path)
        self._finished.add(path)

    def _read_appended(self, path: Path) -> None:
        number, reached = self._read.setdefault(path, (len(self._read), FileCursor()))
        for record, offset in iter_complete_records(path, reached):
            key = Sample.from_json(record).key
            index = self._index.get(key)
            if index is None or self._file[index] >= 0:
                raise UserError(
                    f"{path}:{reached.lines} with sample {key}",
                    rule="that sample is not planned, or is repeated",
                    fix="move that file away, or remove that line, and start again",
                )
            if self._file[index] == _NOWHERE:
                self._count(record)
                self._file[index], self._offset[index] = number, offset

    def _count(self, record: dict[str, Any]) -> None:
        self.counts["samples"] += 1
        self.counts["response_tokens"] += len(record["response_token_ids"])
        self.counts[record["finish_reason"]] += 1


def _misplaced(path: Path) -> UserError:
    return UserError(f"file {path}", rule="is not a finished shard of this plan", fix="move it away and start again")


def _copy_lines(target: Path, lines: list[tuple[Path, int]]) -> str:
    """Replace ``target`` by the lines that begin at ``lines`` (file, byte offset); returns its SHA-256."""
    digest = hashlib.sha256()
    temporary = target.with_name(f".{target.name}.tmp")
    with contextlib.ExitStack() as stack, temporary.open("wb") as file:
        sources = {path: stack.enter_context(path.open("rb")) for path in {path for path, _ in lines}}
        for path, offset in lines:
            sources[path].seek(offset)
            line = sources[path].readline()
            file.write(line)
            digest.update(line)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)
    return digest.hexdigest()


def shard_plan(folder: Path, keys: Sequence[Key], *, size: int) -> list[Shard]:
    """The shards of ``folder``, each with the next ``size`` of ``keys``."""
    starts = range(0, len(keys), size)
    return [(folder / f"shard-{number:05d}.jsonl", keys[start : start + size]) for number, start in enumerate(starts)]


def worker_file(folder: Path, worker: WorkerConfig) -> Path:
    """The file to which ``worker`` appends its records."""
    return folder / f"worker-{worker.rank or 0}-of-{worker.world or 1}.jsonl"


def span_file(folder: Path, worker: WorkerConfig) -> Path:
    """The file in which ``worker`` records when it was running."""
    return worker_file(folder, worker).with_suffix(".spans.json")


def worker_files(folder: Path) -> list[Path]:
    """The record files of all workers, running or ended, of any ``worker.world``."""
    return sorted(path for path in folder.glob("worker-*.jsonl") if _WORKER.fullmatch(path.name))


def span_files(folder: Path) -> list[Path]:
    """The files in which workers record when they were running."""
    return sorted(folder.glob("worker-*.spans.json"))


def worker_name(path: Path) -> str:
    """The worker of a file, for example ``worker-0-of-2``."""
    return path.name.partition(".")[0]


def is_work(path: Path) -> bool:
    """Whether a file of the folder is work to keep, and not only a worker's times."""
    return not path.match("worker-*.spans.json") and not path.match(".worker-*.tmp")


def remove_worker_files(folder: Path) -> None:
    """Remove the record files of all workers, and unfinished files of workers that were killed."""
    for path in [*worker_files(folder), *folder.glob(".worker-*.tmp")]:
        path.unlink()


def running_workers(folder: Path) -> list[Path]:
    """The record files of running workers. Hold the stage's lock, so that no worker is starting meanwhile."""
    return [path for path in worker_files(folder) if _is_locked(path)]


@contextlib.contextmanager
def worker_lock(folder: Path, worker: WorkerConfig) -> Iterator[None]:
    """Hold the lock of ``worker`` in ``folder``. Enter while holding the stage's lock.

    Raises:
        UserError: another process is the same worker, or a worker of another ``worker.world`` is running.
    """
    path = worker_file(folder, worker)
    for other in running_workers(folder):
        found = _WORKER.fullmatch(other.name)
        assert found is not None
        if int(found[2]) != (worker.world or 1):
            raise UserError(
                f"worker.world = {worker.world or 1}",
                rule=f"worker {int(found[1])} of {found[2]} is running in {folder}, and its samples would overlap",
                fix=f"set worker.world={found[2]}, or wait for the others or stop them",
            )
    with path.open("ab") as file:
        if not try_lock(file):
            raise UserError(
                f"worker.rank = {worker.rank or 0}",
                rule=f"{worker.label} is already running in {folder}",
                fix="wait for it or stop it, or start each worker with its own worker.rank",
            )
        yield


@contextlib.contextmanager
def worker_at_work(stage: Stage, worker: WorkerConfig) -> Iterator[SpanNotes]:
    """Open the stage's work folder, hold the lock of ``worker`` in it, and record that it is working.

    Enter while holding the stage's lock.

    Raises:
        UserError: see ``Stage.open_work`` and ``worker_lock``.
    """
    stage.open_work(in_use=bool(running_workers(stage.work)))
    with worker_lock(stage.work, worker):
        spans = SpanNotes(span_file(stage.work, worker))
        spans.begin(AT_WORK)
        yield spans


def _is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        return not try_lock(file, shared=True)
