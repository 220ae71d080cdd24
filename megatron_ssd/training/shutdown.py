"""Turns the signals that ask training to stop into a request that all ranks see at the same iteration."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, Self

from megatron_ssd.errors import Requeue
from megatron_ssd.signals import REQUEST_OF, FirstRequest

_CODES: tuple[type[KeyboardInterrupt] | None, ...] = (None, KeyboardInterrupt, Requeue)


class GracefulShutdown:
    """While entered, SIGINT, SIGTERM and SIGUSR1 do not interrupt; ``requested`` reports them.

    A second request ends this process at once. Ranks agree by the largest ``code`` of any of them, which each training
    step computes together with other numbers and gives to ``agree``.
    """

    def __init__(self) -> None:
        self._first = FirstRequest()
        self._request: type[KeyboardInterrupt] | None = None
        self._agreed: type[KeyboardInterrupt] | None = None
        self._handlers: dict[int, Any] = {}

    @property
    def code(self) -> float:
        """What this process was asked for, as a number; 0 for nothing."""
        return float(_CODES.index(self._request))

    def agree(self, code: float) -> None:
        """Take the largest ``code`` of any rank."""
        self._agreed = _CODES[int(code)]

    def requested(self) -> type[KeyboardInterrupt] | None:
        """The exception to end with if any rank was asked to stop before the last agreement, else None."""
        return self._agreed

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, self._note) for number in REQUEST_OF}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._first.is_new(number):
            self._request = REQUEST_OF[number]
