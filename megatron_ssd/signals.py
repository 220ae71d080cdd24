"""Turns requests to stop a process into exceptions, so that it saves its work and ends with the right status."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType

from megatron_ssd.errors import Requeue

# What a signal asks for: the user wants the run to end, or a scheduler wants the machine and will start the run again.
REQUEST_OF: dict[int, type[KeyboardInterrupt]] = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: Requeue,  # torchrun, and SLURM before it kills
    signal.SIGUSR1: Requeue,  # SLURM's --signal, some time before its limit
}
OF_SCHEDULERS = tuple(number for number, request in REQUEST_OF.items() if request is Requeue)
# A terminal, a scheduler and a launcher may all pass on the same request; a signal after this time is a second request.
_SAME_REQUEST_SECONDS = 1.0


class FirstRequest:
    """Tells the first signal from those that follow."""

    def __init__(self) -> None:
        self._at: float | None = None

    @property
    def came(self) -> bool:
        """Whether there was a signal."""
        return self._at is not None

    def is_new(self, number: int) -> bool:
        """Whether signal ``number`` is the first one. If it is a second request, this process ends at once."""
        if self._at is None:
            self._at = time.monotonic()
            return True
        if time.monotonic() - self._at > _SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return False


@contextlib.contextmanager
def requeue_on_signals() -> Iterator[None]:
    """While entered, in the main thread, SIGTERM and SIGUSR1 raise ``Requeue`` there.

    A second one, more than a second later, ends the process at once. If one came, they are ignored after the body,
    because the process is about to end and its status must be the right one.
    """
    first = FirstRequest()

    def stop(number: int, frame: FrameType | None) -> None:
        if first.is_new(number):
            raise Requeue

    before = {number: signal.signal(number, stop) for number in OF_SCHEDULERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if first.came else handler)
