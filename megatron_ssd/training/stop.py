"""A wish to stop, from the keyboard or a scheduler, that all ranks hear at the same iteration."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; torchrun and SLURM before they kill


class StopRequest:
    """While entered, SIGINT and SIGTERM are noted and do not interrupt; ``agreed`` tells of them."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._noted = False
        self._handlers: dict[int, Any] = {}

    def agreed(self) -> bool:
        """Whether any rank was asked to stop. Every rank must call it, as often as the others."""
        asked = torch.tensor([float(self._noted)], device=self._device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return bool(asked.item())

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True
