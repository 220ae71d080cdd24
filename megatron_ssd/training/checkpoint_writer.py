"""Writing checkpoints, while training waits or while it goes on, so that they appear whole.

A checkpoint is written as ``iter_0000250.partial`` by a child process of each rank; the child also hashes what it
wrote. When those of all ranks are done, rank 0 writes the facts, forces everything to disk and renames. Nothing else
ever carries the final name.

Asynchronous saving is Megatron-Core's ``AsyncCallsQueue``: the child is a fork, so on a CPU it sees the state of the
moment of the save (copy on write), and from a GPU the state is copied to host memory before the fork. One save is under
way at a time. Children die with their rank: a restarted run never meets a writer of the one before.
"""

from __future__ import annotations

import errno
import functools
import multiprocessing.util
import os
import pickle
import queue
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from torch.distributed.checkpoint import CheckpointException

from megatron_ssd.artifacts.atomic import fsync_path
from megatron_ssd.artifacts.hashing import sha256_file
from megatron_ssd.artifacts.manifest import package_versions
from megatron_ssd.config.training import CheckpointConfig
from megatron_ssd.process import die_with_parent
from megatron_ssd.runtime.versions import save_options
from megatron_ssd.training.checkpoint_folder import (
    FACTS_FILE,
    CheckpointFacts,
    FileFacts,
    checkpoint_path,
    partial_path,
    prune,
)

_NO_SPACE = 1 << 16  # bytes; below this a failed write is put down to a full disk
_HASH_THREADS = 2  # Megatron-Core writes two files a rank


class CheckpointWriter:
    """Writes the checkpoints of one run below ``folder``. Every rank has one and calls it alike."""

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self._folder = folder
        self._config = config
        self._queue = AsyncCallsQueue()
        # In every child that multiprocessing forks from here on, children of children too.
        multiprocessing.util.register_after_fork(self, _die_with_parent)

    def save(
        self,
        iteration: int,
        state: dict[str, Any],
        *,
        optimizer_kind: str,
        layout: dict[str, int],
        content_metadata: dict[str, Any],
        may_prune: bool = True,
    ) -> None:
        """Write ``state``; returns when it stands, or, with ``save_async``, when it no longer depends on the model.

        Raises:
            OSError: (ENOSPC) the disk is full.
            CheckpointException: a writer failed, here or on another rank.
        """
        self.finish()
        partial = partial_path(self._folder, iteration)
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed while writing it
            partial.mkdir(parents=True)
        dist.barrier()
        with _full_disk_named(self._folder):
            request = self._request(state, partial, content_metadata)
            digests = _Handover()
            if request.async_fn is not None:  # None on a rank that has nothing to write
                write = functools.partial(_write_and_hash, request.async_fn, partial, dist.get_rank(), digests)
                request = request._replace(async_fn=write)
            facts = functools.partial(
                CheckpointFacts,
                iteration=iteration,
                optimizer=optimizer_kind,
                layout=layout,
                versions=package_versions(),
            )
            request.add_finalize_fn(functools.partial(self._publish, partial, iteration, digests, facts, may_prune))
            if self._config.save_async:
                self._queue.schedule_async_request(request)
            else:
                request.execute_sync()

    def poll(self) -> None:
        """Publish the save under way if the writers of all ranks have finished. Raises as ``save`` does."""
        with _full_disk_named(self._folder):
            self._queue.maybe_finalize_async_calls(blocking=False)

    def finish(self) -> None:
        """Wait for the save under way and publish it. Raises as ``save`` does."""
        with _full_disk_named(self._folder):
            self._queue.maybe_finalize_async_calls(blocking=True)

    def _request(self, state: dict[str, Any], partial: Path, content_metadata: dict[str, Any]) -> Any:
        """Megatron-Core's plan of the save: who writes what."""
        with _own_results_queue():
            return dist_checkpointing.save(
                state, str(partial), async_sharded_save=True, content_metadata=content_metadata, **save_options()
            )

    def _publish(
        self,
        partial: Path,
        iteration: int,
        digests: _Handover,
        facts: Callable[..., CheckpointFacts],
        may_prune: bool,
    ) -> None:
        """The last step of a save: facts, disk, name. Runs on every rank."""
        gathered: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, digests.get())
        if dist.get_rank() == 0:
            known = {name: digest for each in gathered for name, digest in each.items()}
            paths = sorted(path for path in partial.iterdir() if path.name != FACTS_FILE)
            files = {
                path.name: FileFacts(bytes=path.stat().st_size, sha256=known.get(path.name) or sha256_file(path))
                for path in paths
            }
            facts(files=files).write(partial)
            for path in [*paths, partial]:
                fsync_path(path)
            partial.rename(checkpoint_path(self._folder, iteration))
            fsync_path(self._folder)
            if may_prune:
                prune(self._folder, self._config)
        dist.barrier()


class _Handover:
    """Takes one object from a child process to its parent: ``put`` there, ``get`` here after the child's end.

    A file without a name: nothing to start, nothing left behind, and no pipe that a large object fills up. It also
    stands in for Megatron-Core's queue of results.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object

    def put(self, value: Any) -> None:
        """Store ``value`` in place of what was there."""
        self._file.seek(0)
        self._file.truncate()
        pickle.dump(value, self._file)
        self._file.flush()

    def get_nowait(self) -> Any:
        """What was stored. Raises ``queue.Empty`` where the child ended without it."""
        self._file.seek(0)
        try:
            return pickle.load(self._file)
        except (EOFError, pickle.UnpicklingError):
            raise queue.Empty from None

    def get(self) -> dict[str, str]:
        """What was stored; {} for nothing."""
        try:
            value: dict[str, str] = self.get_nowait()
        except queue.Empty:
            return {}
        return value


@contextmanager
def _own_results_queue() -> Iterator[None]:
    """Have Megatron-Core plan a save with a ``_Handover`` for its results.

    Its own queue is a process beside each rank that takes seconds to start and outlives a killed run.
    """
    before = filesystem_async._results_queue
    filesystem_async._results_queue = _Handover()
    try:
        yield
    finally:
        filesystem_async._results_queue = before


def _write_and_hash(
    write: Callable[..., None], folder: Path, rank: int, digests: _Handover, *args: Any, **kwargs: Any
) -> None:
    """Megatron-Core's ``write``, then the hashes of this rank's files, read back from the page cache."""
    write(*args, **kwargs)
    paths = sorted(folder.glob(f"__{rank}_*"))
    with ThreadPoolExecutor(_HASH_THREADS) as threads:
        digests.put(dict(zip((path.name for path in paths), threads.map(sha256_file, paths), strict=True)))


def _die_with_parent(_: CheckpointWriter) -> None:
    die_with_parent()


@contextmanager
def _full_disk_named(folder: Path) -> Iterator[None]:
    """A full disk is an ``OSError``, whatever words came through worker processes and from other ranks."""
    try:
        yield
    except (Exception, CheckpointException) as error:  # the second is no Exception
        if os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(folder).free < _NO_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise
