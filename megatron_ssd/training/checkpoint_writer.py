"""Writes checkpoints atomically, synchronously or while training continues.

Each rank writes and hashes its part of ``iter_0000250.partial``. When all ranks have finished, rank 0 writes
``checkpoint.json``, forces the small files to disk and renames the folder. Only a complete checkpoint ever has the
final name.

Megatron-Core plans who writes what. Its own writer of files is not used: it takes several processes, and the files
would have to be read again to be hashed. Here, one thread serialises the state into one file, and two others hash and
write it. They live in the process of their rank, so a restarted run never meets a writer of the previous one.

To save asynchronously, the state is written while training continues, which changes it only in an update of the
weights. Just before the next update, ``detach`` lets what is not written yet be copied in host memory. State on a GPU
is copied at once. A forked process would see the state without a copy, but each page that training changes would then
be copied by itself, which takes several times as long. One save is in progress at a time.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.storage import WriteResult

from megatron_ssd.artifacts.atomic import fsync_path
from megatron_ssd.config.training import CheckpointConfig
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
from megatron_ssd.training.host_memory import HostMemory
from megatron_ssd.training.optimizer_state import sharding

_NO_SPACE = 1 << 16  # bytes; with less free space, a failed write is attributed to a full disk
_NICENESS = 15


@dataclass
class _Value:
    """An object or a tensor to write, and its item of the plan."""

    item: Any
    value: Any


class CheckpointWriter:
    """Writes the checkpoints of one run below ``folder``. Every rank has one and calls it in lockstep."""

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self._folder = folder
        self._config = config
        self.optimizer_format = config.optimizer_format
        self._thread = ThreadPoolExecutor(1, initializer=_lower_priority if config.save_async else None)
        self._memory = HostMemory()
        self._is_wanted, self._is_detached = threading.Event(), threading.Event()
        # The hash of each file by name, when they are written, and what then publishes the checkpoint.
        self._saving: tuple[Future[dict[str, str]], list[Callable[[], None]]] | None = None

    def save(self, facts: CheckpointFacts, state: dict[str, Any], *, may_prune: bool) -> None:
        """Write ``state``; returns when it is published. With ``save_async`` it returns before, and ``detach`` must be
        called before the state changes.

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
            results: queue.SimpleQueue[Any] = queue.SimpleQueue()
            request = self._request(state, partial, sharding(facts.optimizer_format), results)
            path, values = None, []
            if request.async_fn is not None:  # None on a rank that has nothing to write
                [bucket] = request.async_fn_args[1] if self._config.save_async else request.preload_fn()
                name, _, (objects, tensors) = bucket
                path, values = Path(name), [_Value(*pair) for pair in (*objects, *tensors)]
            self._is_wanted.clear()
            self._is_detached.clear()
            if self._config.save_async and any(_is_on_gpu(each.value) for each in values):
                self._copy(values)
                self._is_detached.set()
            hashes = self._thread.submit(self._write, path, values, results)
            publish = functools.partial(self._publish, partial, hashes, facts, may_prune)
            self._saving = hashes, [*request.finalize_fns, publish]
        if not self._config.save_async:
            self.finish()

    @functools.cached_property
    def _strategy(self) -> FullyParallelSaveStrategyWrapper:
        """Shares the writing of what several data-parallel ranks hold among them.

        Once two saves have had the same plan, all others use it without planning again.
        """
        strategy = get_default_save_sharded_strategy()
        strategy.thread_count = 1  # number of files
        strategy.use_cached_ckpt_structure = True
        return _Strategy(strategy, replicas(), do_cache_distribution=True)

    def detach(self) -> None:
        """Return when the save in progress, if there is one, no longer depends on the state, which may change then."""
        if self._saving is not None:
            self._is_wanted.set()
            self._is_detached.wait()

    def poll(self) -> None:
        """Publish the save in progress if the writers of all ranks have finished. Raises as ``save`` does."""
        if self._saving is not None:
            done = [False] * dist.get_world_size()
            dist.all_gather_object(done, self._saving[0].done())
            if all(done):
                self.finish()

    def finish(self) -> None:
        """Wait for the save in progress and publish it. Raises as ``save`` does."""
        if self._saving is not None:
            (hashes, publish), self._saving = self._saving, None
            hashes.result()
            with _name_full_disk(self._folder):
                for step in publish:
                    step()

    def _request(self, state: dict[str, Any], partial: Path, content: dict[str, Any], results: object) -> Any:
        """Megatron-Core's plan of the save: which rank writes what, with ``results`` for the entries of ``.metadata``.

        Its own queue is one more process per rank, which takes seconds to start and outlives a killed run.
        """
        before = filesystem_async._results_queue
        filesystem_async._results_queue = results
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

    def _write(self, path: Path | None, values: list[_Value], results: queue.SimpleQueue[Any]) -> dict[str, str]:
        """Write and hash the file of this rank, if it has one; returns the hash by name, {} if that fails.

        ``results`` gets what Megatron-Core's writer puts there: the entries of each file, or the error, which is then
        raised on every rank.
        """
        entries: dict[int, list[WriteResult]] = {}
        hashes: dict[str, str] = {}
        try:
            if path is not None:
                with DistcpFile(path) as file:
                    entries[0] = [self._append(file, values, number) for number in range(len(values))]
                    self._is_detached.set()  # the file has copies, which take a while to reach the disk
                hashes[path.name] = file.hexdigest()
        except Exception as error:  # noqa: BLE001
            results.put(error)
            return {}
        finally:
            self._is_detached.set()
        results.put(entries)
        return hashes

    def _append(self, file: DistcpFile, values: list[_Value], number: int) -> WriteResult:
        """Append ``values[number]``, after a copy of it and those that follow if the state is about to change."""
        if self._is_wanted.is_set() and not self._is_detached.is_set():
            self._copy(values[number:])
            self._is_detached.set()
        item, value = values[number].item, values[number].value
        return file.append(item.index, value, checksum=not item.index.fqn.startswith("optimizer."))

    def _copy(self, values: list[_Value]) -> None:
        """Replace the tensors among ``values`` by copies in host memory."""
        tensors = [each for each in values if isinstance(each.value, torch.Tensor)]
        for each, copy in zip(tensors, self._memory.copies([one.value for one in tensors]), strict=True):
            each.value = copy

    def _publish(self, partial: Path, hashes: Future[dict[str, str]], facts: CheckpointFacts, may_prune: bool) -> None:
        """Write ``checkpoint.json``, force what is not there yet to disk and rename. Runs on every rank."""
        gathered: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, hashes.result())
        if dist.get_rank() == 0:
            known = {name: digest for each in gathered for name, digest in each.items()}
            write_facts(partial, facts, hashes=known)
            for path in [*(path for path in partial.iterdir() if path.name not in known), partial]:
                fsync_path(path)
            partial.rename(checkpoint_path(self._folder, facts.iteration))
            fsync_path(self._folder)
            if may_prune:
                prune(self._folder, self._config)
        dist.barrier()


class _Strategy(FullyParallelSaveStrategyWrapper):
    """Megatron-Core's strategy, without its copy of each tensor on a CPU that shares its storage with others."""

    def async_save(self, sharded_state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Megatron-Core's plan of the save."""
        for value in nested_values(sharded_state_dict):
            if isinstance(value, ShardedTensor) and value.data.device.type == "cpu":
                # The same memory, of which torch knows no other owner.
                values = value.data.detach().contiguous()
                alone = torch.from_numpy(values.view(-1).view(torch.uint8).numpy())
                value.data = alone.view(values.dtype).view(values.shape)
        return super().async_save(sharded_state_dict, *args, **kwargs)


def _lower_priority() -> None:
    """Give this thread, and those that it starts, less right to the CPU than training has."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _is_on_gpu(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type != "cpu"


@contextlib.contextmanager
def _name_full_disk(folder: Path) -> Iterator[None]:
    """Raise a full disk as ``OSError``, however writers and other ranks report it."""
    try:
        yield
    except (Exception, CheckpointException) as error:  # the second is not an Exception
        if os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(folder).free < _NO_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise
