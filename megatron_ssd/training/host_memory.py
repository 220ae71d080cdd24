"""Keeps host memory for copies of a rank's state."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes


class HostMemory:
    """Memory that is taken at the first copy and kept: to get it again would take longer than to copy."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def copies(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """A contiguous copy of each tensor, with storage of its own. They are valid until the next call."""
        sizes = [tensor.nbytes + -tensor.nbytes % _ALIGNMENT for tensor in tensors]
        if sum(sizes) > len(self._memory):
            self._memory = mmap.mmap(-1, sum(sizes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start, result = 0, []
        for tensor, size in zip(tensors, sizes, strict=True):
            if size == 0:  # which frombuffer refuses
                result.append(torch.empty(tensor.shape, dtype=tensor.dtype))
                continue
            flat = torch.frombuffer(self._memory, dtype=tensor.dtype, count=tensor.numel(), offset=start)
            result.append(flat.view(tensor.shape).copy_(tensor.detach(), non_blocking=True))
            start += size
        torch.cuda.synchronize()
        return result
