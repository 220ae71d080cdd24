"""Which device a stage computes on, decided once and said clearly where it cannot be had."""

from __future__ import annotations

import os
from typing import Literal

import torch

from megatron_ssd.config.model import MoeConfig
from megatron_ssd.config.parallel import ClusterConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.errors import UserError
from megatron_ssd.runtime import cpu
from megatron_ssd.runtime.hardware import check_hardware
from megatron_ssd.runtime.versions import quiet_megatron

Device = Literal["cuda", "cpu"]


def prepare_device(
    cluster: ClusterConfig, precision: PrecisionConfig | None = None, moe: MoeConfig | None = None
) -> Device:
    """Make ``cluster.device`` ready for Megatron-Core and return it.

    On cpu this sets the thread count and installs the adaptation of ``runtime.cpu``.

    Args:
        precision: whether fp32 matrix products may round to bf16 inside (``fast_matmul``); None for exact ones. Where
            the processor has no bf16 units, neither speed nor numbers change.
        moe: how tokens are exchanged; None for nothing that needs a library of its own.

    Raises:
        UserError: see ``check_device``, and on cuda ``hardware.check_hardware``.
    """
    check_device(cluster)
    # Megatron-Core's order of collectives and kernels under tensor parallelism relies on one hardware queue.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    quiet_megatron()
    torch.set_float32_matmul_precision("medium" if precision and precision.fast_matmul else "highest")
    if cluster.device == "cuda":
        if precision is not None:
            check_hardware(precision, moe or MoeConfig())
        return "cuda"
    torch.set_num_threads(cluster.threads_per_process)
    cpu.install()
    return "cpu"


def check_device(cluster: ClusterConfig) -> None:
    """Raise ``UserError`` where ``cluster.device`` is cuda and there is none, or cpu beside a visible GPU."""
    if cluster.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "cluster.device = cuda",
            rule=f"needs an NVIDIA GPU, and {_what_is_missing()}",
            fix="run on a GPU machine, check the layout with dry_run=true, or try the small CPU run with "
            "experiment=demo",
        )
    if cluster.device == "cpu" and torch.cuda.is_available():
        raise UserError(
            "cluster.device = cpu",
            rule="Megatron-Core takes the GPU that it sees and this machine shows one",
            fix="set cluster.device=cuda, or hide the GPU with CUDA_VISIBLE_DEVICES=''",
        )


def _what_is_missing() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    return f"no CUDA device is visible to torch {torch.__version__}"
