"""Asks NVIDIA's driver about the GPUs that this process may use.

Does not need torch, whose import takes seconds.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

Capability = tuple[int, int]  # compute capability, for example (9, 0)


@dataclass(frozen=True, kw_only=True)
class VisibleGpu:
    """A GPU of this machine."""

    memory_bytes: float
    capability: Capability


def visible_gpus() -> list[VisibleGpu]:
    """The GPUs of this machine that CUDA_VISIBLE_DEVICES leaves; empty if nvidia-smi finds none or is missing."""
    query = ["nvidia-smi", "--query-gpu=memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []
    return _left_visible([_gpu(line) for line in lines if line.strip()], os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible_capability() -> Capability | None:
    """The lowest compute capability among the visible GPUs; None if there is none."""
    return min((gpu.capability for gpu in visible_gpus()), default=None)


def _gpu(line: str) -> VisibleGpu:
    """For example ``81559, 9.0``, in MiB."""
    memory, capability = line.split(",")
    major, minor = capability.strip().split(".")
    return VisibleGpu(memory_bytes=float(memory) * 2**20, capability=(int(major), int(minor)))


def _left_visible(gpus: list[VisibleGpu], names: str | None) -> list[VisibleGpu]:
    """``gpus`` without those that CUDA_VISIBLE_DEVICES leaves out. UUIDs are counted, and not looked up."""
    if names is None:
        return gpus
    named = [name.strip() for name in names.split(",") if name.strip()]
    if all(name.isdecimal() for name in named):
        return [gpus[int(name)] for name in named if int(name) < len(gpus)]
    return gpus[: len(named)]
