"""Writes checkpoints atomically, synchronously or while training continues.

Child processes of each rank write its part of ``iter_0000250.partial``, and another one hashes the files while they
grow. When the children of all ranks have finished, rank 0 writes ``checkpoint.json``, forces everything to disk and
renames the folder. Only a complete checkpoint ever has the final name.

Asynchronous saving uses Megatron-Core's ``AsyncCallsQueue``: the child is a fork, so on a CPU it sees the state as it
was at the save (copy on write), and from a GPU the state is copied to host memory before the fork. One save is in
progress at a time. Children die with their rank, so a restarted run never meets a writer of the previous one.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import multiprocessing
import multiprocessing.util
import os
import pickle
import queue
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from torch.distributed.checkpoint import CheckpointException

from megatron_ssd.artifacts.atomic import fsync_path
from megatron_ssd.config.training import CheckpointConfig
from megatron_ssd.process import die_with_parent
from megatron_ssd.runtime.process_groups import replicas
from megatron_ssd.runtime.versions import save_options
from megatron_ssd.training.checkpoint_folder import (
    PARTIAL,
    CheckpointFacts,
    checkpoint_path,
    prune,
    write_facts,
)
from megatron_ssd.training.optimizer_state import sharding

_NO_SPACE = 1 << 16  # bytes; with less free space, a failed write is attributed to a full disk
_NICENESS = 15
_POLL_SECONDS = 0.01
_CHUNK = 1 << 22  # bytes


class CheckpointWriter:
    """Writes the checkpoints of one run below ``folder``. Every rank has one and calls it in lockstep."""

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self._folder = folder
        self._config = config
        self.optimizer_format = config.optimizer_format
        self._queue = AsyncCallsQueue()
        # Runs in every child that multiprocessing forks from now on, and in their children.
        multiprocessing.util.register_after_fork(self, lambda _: die_with_parent())

    def save(self, facts: CheckpointFacts, state: dict[str, Any], *, may_prune: bool) -> None:
        """Write ``state``; returns when it is published, or, with ``save_async``, when the model may change again.

        Args:
            facts: content of ``checkpoint.json``, except for its ``files``.
            state: sharded tensors and objects of this rank.
            may_prune: whether superfluous checkpoints are removed afterwards.

        Raises:
            OSError: (ENOSPC) the disk is full.
            CheckpointException: a writer failed, here or on another rank.
        """
        self.finish()
        partial = checkpoint_path(self._folder, facts.iteration).with_suffix(PARTIAL)
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed while writing it
            partial.mkdir(parents=True)
        dist.barrier()
        with _name_full_disk(self._folder):
            request = self._request(state, partial, sharding(facts.optimizer_format))
            digests = _ResultFile()
            if request.async_fn is not None:  # None on a rank that has nothing to write
                write = functools.partial(_write_and_hash, request.async_fn, digests)
                if self._config.save_async:
                    write = functools.partial(_in_background, write)
                request = request._replace(async_fn=write)
            request.add_finalize_fn(functools.partial(self._publish, partial, digests, facts, may_prune))
            if self._config.save_async:
                self._queue.schedule_async_request(request)
            else:
                request.execute_sync()

    @functools.cached_property
    def _strategy(self) -> FullyParallelSaveStrategyWrapper:
        """Shares the writing of what several data-parallel ranks hold among them, in the same way at each save."""
        return FullyParallelSaveStrategyWrapper(
            get_default_save_sharded_strategy(), replicas(), do_cache_distribution=True
        )

    def poll(self) -> None:
        """Publish the save in progress if the writers of all ranks have finished. Raises as ``save`` does."""
        with _name_full_disk(self._folder):
            self._queue.maybe_finalize_async_calls(blocking=False)

    def finish(self) -> None:
        """Wait for the save in progress and publish it. Raises as ``save`` does."""
        with _name_full_disk(self._folder):
            self._queue.maybe_finalize_async_calls(blocking=True)

    def _request(self, state: dict[str, Any], partial: Path, content: dict[str, Any]) -> Any:
        """Megatron-Core's plan of the save: which rank writes what, with a ``_ResultFile`` for the results.

        Its own queue is one more process per rank, which takes seconds to start and outlives a killed run.
        """
        before = filesystem_async._results_queue
        filesystem_async._results_queue = _ResultFile()
        try:
            return dist_checkpointing.save(
                state,
                str(partial),
                self._strategy,
                validate_access_integrity=False,  # the strategy does
                async_sharded_save=True,
                content_metadata=content,
                **save_options(),
            )
        finally:
            filesystem_async._results_queue = before

    def _publish(self, partial: Path, digests: _ResultFile, facts: CheckpointFacts, may_prune: bool) -> None:
        """Write ``checkpoint.json``, force everything to disk and rename. Runs on every rank."""
        gathered: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, digests.get())
        if dist.get_rank() == 0:
            write_facts(partial, facts, hashes={name: digest for each in gathered for name, digest in each.items()})
            for path in [*partial.iterdir(), partial]:
                fsync_path(path)
            partial.rename(checkpoint_path(self._folder, facts.iteration))
            fsync_path(self._folder)
            if may_prune:
                prune(self._folder, self._config)
        dist.barrier()


class _ResultFile:
    """Passes one object from a child process to its parent: ``put`` in the child, ``get`` after it has ended.

    An unnamed file needs no process, leaves nothing behind, and unlike a pipe cannot fill up. It also replaces
    Megatron-Core's queue of results.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object

    def put(self, value: Any) -> None:
        """Store ``value``, replacing an earlier one."""
        self._file.seek(0)
        self._file.truncate()
        pickle.dump(value, self._file)
        self._file.flush()

    def get_nowait(self) -> Any:
        """The stored object. Raises ``queue.Empty`` if the child ended without storing one."""
        self._file.seek(0)
        try:
            return pickle.load(self._file)
        except (EOFError, pickle.UnpicklingError):
            raise queue.Empty from None

    def get(self) -> dict[str, str]:
        """The stored dictionary; {} if there is none."""
        try:
            value: dict[str, str] = self.get_nowait()
        except queue.Empty:
            return {}
        return value


def _in_background(write: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Run ``write`` in this process, a child, with less right to the CPU than training has."""
    os.nice(_NICENESS)
    write(*args, **kwargs)


def _write_and_hash(
    write: Callable[..., None], digests: _ResultFile, rank: int, write_buckets: list[Any], *args: Any
) -> None:
    """Run Megatron-Core's ``write`` of ``write_buckets``, a list of (path, ...), while a process hashes the files."""
    processes = multiprocessing.get_context("fork")
    written = processes.Event()
    paths = [Path(path) for path, *_ in write_buckets]
    hasher = processes.Process(target=_hash_growing_files, args=(paths, written, digests))
    hasher.start()
    try:
        write(rank, write_buckets, *args)
    finally:
        written.set()
        hasher.join()


def _hash_growing_files(paths: list[Path], written: Event, digests: _ResultFile) -> None:
    """Put the hash of each file by its name. A file grows at its end only, until ``written`` is set."""
    with ThreadPoolExecutor(len(paths)) as threads:
        found = threads.map(functools.partial(_hash_growing_file, written=written), paths)
        digests.put({path.name: digest for path, digest in zip(paths, found, strict=True) if digest is not None})


def _hash_growing_file(path: Path, written: Event) -> str | None:
    """SHA-256 of ``path``; None if it was never written."""
    digest = hashlib.sha256()
    while not path.exists():
        if written.wait(_POLL_SECONDS) and not path.exists():
            return None
    with path.open("rb", buffering=0) as file:
        while True:
            is_complete = written.is_set()
            if chunk := file.read(_CHUNK):
                digest.update(chunk)
            elif is_complete:
                return digest.hexdigest()
            else:
                written.wait(_POLL_SECONDS)


@contextmanager
def _name_full_disk(folder: Path) -> Iterator[None]:
    """Raise a full disk as ``OSError``, however worker processes and other ranks report it."""
    try:
        yield
    except (Exception, CheckpointException) as error:  # the second is not an Exception
        if os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(folder).free < _NO_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise
