"""What of a node belongs to one of the workers on it."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_ssd.config.worker import WorkerConfig
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
