"""Writes checkpoints atomically, synchronously or while training continues.

Each rank writes and hashes its part of ``iter_0000250.partial``. When all ranks have finished, rank 0 writes
``checkpoint.json``, forces the small files to disk and renames the folder. Only a complete checkpoint ever has the
final name.

Megatron-Core plans who writes what. Its own writer of files is not used: it takes several processes, and the hashes
would have to read the files again.

Asynchronous saving uses Megatron-Core's ``AsyncCallsQueue``: a child writes that is a fork, so on a CPU it sees the
state as it was at the save (copy on write), and from a GPU the state is copied to host memory before the fork. One save
is in progress at a time. The child dies with its rank, so a restarted run never meets a writer of the previous one.
"""

from __future__ import annotations

import errno
import functools
import gc
import multiprocessing.util
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.storage import WriteResult

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
from megatron_ssd.training.distcp_file import DistcpFile
from megatron_ssd.training.optimizer_state import sharding

_NO_SPACE = 1 << 16  # bytes; with less free space, a failed write is attributed to a full disk
_NICENESS = 15


class CheckpointWriter:
    """Writes the checkpoints of one run below ``folder``. Every rank has one and calls it in lockstep."""

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self._folder = folder
        self._config = config
        self.optimizer_format = config.optimizer_format
        self._queue = AsyncCallsQueue()
        # Runs in every child that multiprocessing forks from now on.
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
            report = _Report()
            request = self._request(state, partial, sharding(facts.optimizer_format), report)
            if request.async_fn is not None:  # None on a rank that has nothing to write
                request = request._replace(async_fn=_write_in_background if self._config.save_async else _write)
            request.add_finalize_fn(functools.partial(self._publish, partial, report, facts, may_prune))
            if self._config.save_async:
                self._queue.schedule_async_request(request)
            else:
                request.execute_sync()

    @functools.cached_property
    def _strategy(self) -> _Strategy:
        """Shares the writing of what several data-parallel ranks hold among them, in the same way at each save."""
        return _Strategy(get_default_save_sharded_strategy(), replicas(), do_cache_distribution=True)

    def poll(self) -> None:
        """Publish the save in progress if the writers of all ranks have finished. Raises as ``save`` does."""
        with _name_full_disk(self._folder):
            self._queue.maybe_finalize_async_calls(blocking=False)

    def finish(self) -> None:
        """Wait for the save in progress and publish it. Raises as ``save`` does."""
        with _name_full_disk(self._folder):
            self._queue.maybe_finalize_async_calls(blocking=True)

    def _request(self, state: dict[str, Any], partial: Path, content: dict[str, Any], report: _Report) -> Any:
        """Megatron-Core's plan of the save: which rank writes what, with ``report`` for the results.

        Its own queue is one more process per rank, which takes seconds to start and outlives a killed run.
        """
        before = filesystem_async._results_queue
        filesystem_async._results_queue = report
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

    def _publish(self, partial: Path, report: _Report, facts: CheckpointFacts, may_prune: bool) -> None:
        """Write ``checkpoint.json``, force what is not there yet to disk and rename. Runs on every rank."""
        gathered: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, report.hashes())
        if dist.get_rank() == 0:
            hashes = {name: digest for each in gathered for name, digest in each.items()}
            write_facts(partial, facts, hashes=hashes)
            for path in [*(path for path in partial.iterdir() if path.name not in hashes), partial]:
                fsync_path(path)
            partial.rename(checkpoint_path(self._folder, facts.iteration))
            fsync_path(self._folder)
            if may_prune:
                prune(self._folder, self._config)
        dist.barrier()


class _Strategy(FullyParallelSaveStrategyWrapper):
    """Megatron-Core's strategy, without the copy of each tensor on a CPU that shares its storage with others."""

    def async_save(self, sharded_state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Megatron-Core's plan of the save."""
        for value in nested_values(sharded_state_dict):
            if isinstance(value, ShardedTensor) and value.data.device.type == "cpu":
                value.data = _with_own_storage(value.data)
        return super().async_save(sharded_state_dict, *args, **kwargs)


def _with_own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in the same memory, for which torch knows no other owner: Megatron-Core copies views."""
    values = tensor.detach().contiguous()
    return torch.from_numpy(values.view(-1).view(torch.uint8).numpy()).view(values.dtype).view(values.shape)


class _Written(NamedTuple):
    """A file that was written: its name and hash, and Megatron-Core's entries for ``.metadata``."""

    name: str
    sha256: str
    entries: list[WriteResult]


class _Report:
    """Passes what was written from a child process to its parent, in the place of Megatron-Core's queue of results.

    An unnamed file needs no process, leaves nothing behind, and unlike a pipe cannot fill up.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object

    def put(self, written: list[_Written] | Exception) -> None:
        """Store the files, or why they could not be written."""
        pickle.dump(written, self._file)
        self._file.flush()

    def get_nowait(self) -> dict[int, list[WriteResult]] | Exception:
        """What was stored, as Megatron-Core expects it: the entries of each file, by a number."""
        written = self._read()
        return written if isinstance(written, Exception) else dict(enumerate(file.entries for file in written))

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file by name; {} if this rank had nothing to write."""
        written = self._read()
        assert not isinstance(written, Exception), "Megatron-Core raises it"
        return {file.name: file.sha256 for file in written}

    def _read(self) -> list[_Written] | Exception:
        self._file.seek(0)
        try:
            written: list[_Written] | Exception = pickle.load(self._file)
        except (EOFError, pickle.UnpicklingError):  # nothing to write, or killed; Megatron-Core counts the files
            return []
        return written


def _write_in_background(*args: Any) -> None:
    """``_write`` in this process, a child, with less right to the CPU than training has."""
    os.nice(_NICENESS)
    gc.disable()  # it would free the parent's tensors on a GPU
    _write(*args)


def _write(rank: int, write_buckets: list[Any], report: _Report) -> None:
    """Write and hash the files of this rank, in the place of Megatron-Core's writer."""
    try:
        report.put(_write_files(write_buckets))
    except Exception as error:  # noqa: BLE001 - Megatron-Core raises it on every rank
        report.put(error)


def _write_files(buckets: list[tuple[str, str, tuple[list[Any], list[Any]]]]) -> list[_Written]:
    """Write one file per bucket: path, name, and pairs of a plan's item and its value, objects apart from tensors.

    Values go to the files alternately, so that all files are hashed at the same time.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(DistcpFile(Path(path))) for path, *_ in buckets]
        entries: list[list[WriteResult]] = [[] for _ in files]
        for pairs in zip_longest(*([*objects, *tensors] for _, _, (objects, tensors) in buckets)):
            for number, (item, value) in ((number, pair) for number, pair in enumerate(pairs) if pair is not None):
                is_exported = not item.index.fqn.startswith("optimizer.")
                entries[number].append(files[number].append(item.index, value, checksum=is_exported))
    names = [name for _, name, _ in buckets]
    return list(map(_Written, names, [file.hexdigest() for file in files], entries))


@contextmanager
def _name_full_disk(folder: Path) -> Iterator[None]:
    """Raise a full disk as ``OSError``, however worker processes and other ranks report it."""
    try:
        yield
    except (Exception, CheckpointException) as error:  # the second is not an Exception
        if os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(folder).free < _NO_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise
