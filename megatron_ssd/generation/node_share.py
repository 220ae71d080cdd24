"""What of a node belongs to one of the workers on it, and to each of that worker's engines."""

from __future__ import annotations

import os
from collections.abc import Sequence

from megatron_ssd.config.generation import WorkerConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError


def share_of_node(devices: Sequence[str], worker: WorkerConfig) -> list[str]:
    """The GPUs or processor cores of ``worker``, next to each other. Workers' shares differ by one at most.

    Args:
        devices: names of all that the workers of this node see, in an order that they share.

    Raises:
        UserError: there are fewer devices than workers.
    """
    rank, world = worker.local_rank or 0, worker.local_world or 1
    if len(devices) < world > 1:  # what one alone needs, its engines know
        raise UserError(
            f"{world} workers on this node",
            rule=f"need a GPU or processor core each, and see {len(devices)}",
            fix="start fewer workers a node, or check CUDA_VISIBLE_DEVICES and the processor cores given to the job",
        )
    return list(devices[rank * len(devices) // world : (rank + 1) * len(devices) // world])


def engine_devices(config: RunConfig) -> tuple[tuple[str, ...], ...]:
    """Names of the GPUs, or of the processor cores, that each of ``engine.data_parallel_size`` engines gets.

    Raises:
        UserError: there are too few GPUs, or ``engine.tensor_parallel_size`` is above 1 on CPU.
    """
    size, per_engine = config.engine.data_parallel_size, config.engine.tensor_parallel_size
    if config.cluster.device == "cpu":
        if per_engine > 1:
            raise UserError(
                f"engine.tensor_parallel_size = {per_engine}",
                rule="must be 1 on CPU, where an engine is one process",
                fix="set engine.tensor_parallel_size=1 and raise engine.data_parallel_size",
            )
        cores = share_of_node([str(core) for core in sorted(os.sched_getaffinity(0))], config.worker)
        per_engine = max(1, len(cores) // size)
        cores *= size  # more engines than cores share them
        return tuple(tuple(cores[i * per_engine :][:per_engine]) for i in range(size))
    import torch  # counts devices without touching them

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    devices = share_of_node(devices, config.worker)
    if len(devices) < size * per_engine:
        raise UserError(
            f"engine.data_parallel_size = {size}, engine.tensor_parallel_size = {per_engine}",
            rule=f"need {size * per_engine} CUDA devices and {len(devices)} are visible",
            fix="lower them, or set cluster=cpu on a machine without GPUs",
        )
    return tuple(tuple(devices[i * per_engine :][:per_engine]) for i in range(size))
