"""A wish to stop, from the keyboard or a scheduler, that all ranks hear at the same iteration."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from megatron_ssd.errors import Requeue

# What each signal asks for: the user wants the run to end, or a scheduler wants the machine and will start it again.
_ASKED: dict[int, type[KeyboardInterrupt]] = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: Requeue,  # torchrun, and SLURM before it kills
    signal.SIGUSR1: Requeue,  # SLURM's --signal, some time before its limit
}
_CODES: tuple[type[KeyboardInterrupt] | None, ...] = (None, KeyboardInterrupt, Requeue)
# A terminal and the launcher may both pass on one wish; later than this it is a second one.
_ONE_WISH_SECONDS = 1.0


class StopRequest:
    """While entered, SIGINT, SIGTERM and SIGUSR1 are noted and do not interrupt; ``agreed`` tells of them.

    A second one ends this process at once.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._asked: type[KeyboardInterrupt] | None = None
        self._noted_at = 0.0
        self._handlers: dict[int, Any] = {}

    def agreed(self) -> type[KeyboardInterrupt] | None:
        """What any rank was asked for: the exception to end with, or None to go on.

        Every rank must call it, as often as the others.
        """
        code = torch.tensor([float(_CODES.index(self._asked))], device=self._device)
        dist.all_reduce(code, op=dist.ReduceOp.MAX)
        return _CODES[int(code.item())]

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, self._note) for number in _ASKED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked is None:
            self._asked, self._noted_at = _ASKED[number], time.monotonic()
        elif time.monotonic() - self._noted_at > _ONE_WISH_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
