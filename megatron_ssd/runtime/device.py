"""Prepares the device that a stage computes on."""

from __future__ import annotations

import torch

from megatron_ssd.config.cluster import ClusterConfig, Device
from megatron_ssd.config.model import MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.runtime import cpu
from megatron_ssd.runtime.environment import set_environment
from megatron_ssd.runtime.hardware import check_device, check_hardware
from megatron_ssd.runtime.versions import quiet_megatron


def prepare_device(
    cluster: ClusterConfig,
    precision: PrecisionConfig | None = None,
    moe: MoeConfig | None = None,
    parallel: ParallelConfig | None = None,
) -> Device:
    """Make ``cluster.device`` ready for Megatron-Core and return it.

    On cpu this sets the number of threads and installs the adaptation of ``runtime.cpu``, on cuda the variables of
    ``runtime.environment``. It must come before the first use of CUDA.

    Args:
        precision: decides whether fp32 matrix products may round to bf16 internally (``fast_matmul``); None for exact
            products. With AMX, PyTorch does this itself; see ``models.bf16_products`` for AVX-512. Other processors
            compute in fp32.
        moe: how experts exchange tokens; None if no extra library is needed.
        parallel: the process grid; None for a single process.

    Raises:
        UserError: see ``hardware.check_device``, and on cuda ``hardware.check_hardware``.
    """
    if cluster.device == "cuda":
        set_environment(parallel or ParallelConfig())
    check_device(cluster)
    quiet_megatron()
    torch.set_float32_matmul_precision("medium" if precision and precision.fast_matmul else "highest")
    if cluster.device == "cuda":
        if precision is not None:
            check_hardware(precision, moe or MoeConfig())
        return "cuda"
    torch.set_num_threads(cluster.threads_per_process)
    cpu.install()
    return "cpu"
