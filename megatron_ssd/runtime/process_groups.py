"""Creates the process groups of torch.distributed that Megatron-Core needs.

Invariants: a process has one set of Megatron-Core groups at a time; every context manager destroys what it created,
also after an error.
"""

from __future__ import annotations

import itertools
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.distributed import distributed_c10d
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_ssd.config.cluster import Device
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.errors import UserError, require

T = TypeVar("T")

_TIMEOUT = timedelta(minutes=30)  # of a collective
_POLL_SECONDS = 0.02
_calls = itertools.count()  # of what ranks wait for; all ranks make the same calls in the same order


@contextmanager
def process_groups(parallel: ParallelConfig, *, device: Device) -> Iterator[None]:
    """Join the processes that torchrun started and create Megatron-Core's groups.

    Without torchrun the group has one process.

    Raises:
        UserError: the number of processes is not ``parallel.world_size``, or the rendezvous port is taken.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    require(
        started == parallel.world_size,
        f"parallel.world_size = {parallel.world_size}",
        rule=f"the layout needs {parallel.world_size} processes and {started} "
        f"{'was' if started == 1 else 'were'} started",
        fix=f"start one process, which starts {parallel.world_size} on its machine, or as many with torchrun "
        f"--nproc-per-node={parallel.world_size} (divided by the number of nodes)",
    )
    with joined_processes(device), megatron_grid(parallel, create_gloo_process_groups=True):
        yield


@contextmanager
def fake_process_group(parallel: ParallelConfig, *, rank: int) -> Iterator[None]:
    """Act as rank ``rank`` of ``parallel.world_size`` processes that do not exist: collectives return at once.

    Serves to build a model on the meta device as that rank does; nothing can be computed.
    """
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=parallel.world_size)
    try:
        with megatron_grid(parallel, create_gloo_process_groups=False):
            yield
    finally:
        dist.destroy_process_group()


@contextmanager
def joined_processes(device: Device) -> Iterator[None]:
    """Initialise torch.distributed. Enter it once per process: torchrun's rendezvous cannot be used again."""
    _join(device)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def megatron_grid(parallel: ParallelConfig, *, create_gloo_process_groups: bool) -> Iterator[None]:
    """Create Megatron-Core's groups. A process may do this several times, with layouts of the same world size."""
    existing = set(distributed_c10d._world.pg_map)
    parallel_state.initialize_model_parallel(
        **model_parallel_sizes(parallel), create_gloo_process_groups=create_gloo_process_groups
    )
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        # Megatron-Core only forgets its groups; torch keeps them, each with its own threads.
        for group in set(distributed_c10d._world.pg_map) - existing:
            dist.destroy_process_group(group)


def model_parallel_sizes(parallel: ParallelConfig) -> dict[str, Any]:
    """The sizes of ``parallel`` as keyword arguments, which Megatron-Core's groups and ``TransformerConfig`` share."""
    kinds = ("tensor_model", "pipeline_model", "virtual_pipeline_model", "context", "expert_model", "expert_tensor")
    return {name: getattr(parallel, name) for name in (f"{kind}_parallel_size" for kind in kinds)}


def replicas() -> dist.ProcessGroup:
    """The ranks that hold the same weights as this one: they differ in their data and in their part of a sequence."""
    group: dist.ProcessGroup = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return group


def on_rank_zero(action: Callable[[], T]) -> T:
    """Run ``action`` on rank 0 and return its result, or raise its ``UserError``, on every rank.

    Otherwise the other ranks would wait for a rank that has stopped. They wait as long as it takes, which a collective
    would not let them. The result must be picklable. Without process groups, this process is the only one.
    """
    return _results_of([0], action)[0] if dist.is_initialized() else action()


def on_each_node(action: Callable[[], T]) -> T:
    """Run ``action`` on the first rank of each node, as ``on_rank_zero`` does; no rank goes on before all have ended.

    The result is that of the first node.
    """
    ranks_per_node = int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
    return _results_of(list(range(0, dist.get_world_size(), ranks_per_node)), action)[0]


def _results_of(ranks: list[int], action: Callable[[], T]) -> list[T]:
    """The results of ``action`` on ``ranks``, on every rank, or the first ``UserError`` among them."""
    store, call = distributed_c10d._get_default_store(), next(_calls)
    if dist.get_rank() in ranks:
        try:
            outcome: T | UserError = action()
        except UserError as error:
            outcome = error
        store.set(f"outcome_{call}_{dist.get_rank()}", pickle.dumps(outcome))  # type: ignore[arg-type]  # bytes too
    results = []
    for key in (f"outcome_{call}_{rank}" for rank in ranks):
        # Polled, since waiting has a limit, and would keep other threads of torch from using the store.
        while not store.check([key]):
            time.sleep(_POLL_SECONDS)
        result = pickle.loads(store.get(key))
        if isinstance(result, UserError):
            raise result
        results.append(result)
    return results


def _join(device: Device) -> None:
    backend = "gloo" if device == "cpu" else "nccl"
    if "RANK" not in os.environ:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=_TIMEOUT)
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group(backend, timeout=_TIMEOUT)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"MASTER_PORT = {os.environ.get('MASTER_PORT')}",
            rule="another program uses that port",
            fix="choose a free one with torchrun --master-port=PORT, or use torchrun --standalone on one machine",
        ) from None
