"""Graceful shutdown: all ranks stop at the same iteration."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from megatron_ssd.errors import Requeue

# What each signal means: the user wants the run to end, or a scheduler wants the machine and will start the run again.
_MEANING: dict[int, type[KeyboardInterrupt]] = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: Requeue,  # torchrun, and SLURM before it kills
    signal.SIGUSR1: Requeue,  # SLURM's --signal, some time before its limit
}
_CODES: tuple[type[KeyboardInterrupt] | None, ...] = (None, KeyboardInterrupt, Requeue)
# A terminal and the launcher may both pass on the same request; a signal after this time is a second request.
_SAME_REQUEST_SECONDS = 1.0


class GracefulShutdown:
    """While entered, SIGINT, SIGTERM and SIGUSR1 do not interrupt; ``requested`` reports them.

    A second request ends this process at once.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._request: type[KeyboardInterrupt] | None = None
        self._requested_at = 0.0
        self._handlers: dict[int, Any] = {}

    def requested(self) -> type[KeyboardInterrupt] | None:
        """The exception to end with if any rank was asked to stop, else None. All ranks must call it in lockstep."""
        code = torch.tensor([float(_CODES.index(self._request))], device=self._device)
        dist.all_reduce(code, op=dist.ReduceOp.MAX)
        return _CODES[int(code.item())]

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, self._note) for number in _MEANING}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._request is None:
            self._request, self._requested_at = _MEANING[number], time.monotonic()
        elif time.monotonic() - self._requested_at > _SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
