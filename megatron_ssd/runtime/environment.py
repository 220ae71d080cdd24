"""Sets the environment variables that CUDA and torch's allocator read once, before either of them starts."""

from __future__ import annotations

import os
from collections.abc import Mapping

from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.nvidia_smi import Capability, visible_capability

_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is the older name
_CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
_BLACKWELL = (10, 0)


def set_environment(parallel: ParallelConfig) -> None:
    """Set what ``chosen_variables`` returns for this machine. It does not start CUDA."""
    os.environ.update(chosen_variables(parallel, visible_capability(), os.environ))


def chosen_variables(
    parallel: ParallelConfig, capability: Capability | None, given: Mapping[str, str]
) -> dict[str, str]:
    """The variables for training on GPUs, except those that the user has set.

    - Segments of torch's allocator can grow, so that batches of many lengths do not fragment the memory.
    - Up to compute capability 9, Megatron-Core orders collectives of tensor and context parallelism before kernels by
      one hardware queue. Blackwell orders them without it, and NVIDIA's recipes use 32 queues there.

    Args:
        capability: of the GPUs; None if it is not known, which counts as below 10.
        given: the environment.
    """
    chosen = {}
    if not any(name in given for name in _ALLOCATOR):
        chosen[_ALLOCATOR[0]] = "expandable_segments:True"
    if _CONNECTIONS not in given:
        if capability is not None and capability >= _BLACKWELL:
            chosen[_CONNECTIONS] = "32"
        elif parallel.tensor_model_parallel_size > 1 or parallel.context_parallel_size > 1:
            chosen[_CONNECTIONS] = "1"
    return chosen
