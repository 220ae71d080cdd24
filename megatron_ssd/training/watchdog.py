"""Ends a training process that hangs, so that a scheduler starts the run again.

A rank that waits for one that is lost or stuck waits in a collective operation, which nothing interrupts. All ranks
that wait show where, and end with the status that asks for a requeue.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator

import torch.distributed as dist

log = logging.getLogger(__name__)

_RECENT = 50  # steps of which the mean is taken
_SECONDS_FOR_OTHERS = 10.0  # the launcher ends the other ranks when the first one ends


class StepWatchdog:
    """Watches the duration of each step.

    Args:
        factor: a step hangs if it takes this many times the mean of recent steps, and at least ``least_seconds``.
        least_seconds: None turns the watchdog off.
    """

    def __init__(self, *, factor: float, least_seconds: float | None) -> None:
        self._factor = factor
        self._least_seconds = least_seconds
        self._recent: deque[float] = deque(maxlen=_RECENT)

    @contextlib.contextmanager
    def watch(self, iteration: int) -> Iterator[None]:
        """Watch the body, which is the step of ``iteration``."""
        if self._least_seconds is None:
            yield
            return
        mean = sum(self._recent) / len(self._recent) if self._recent else 0.0
        limit = max(self._least_seconds, self._factor * mean)
        ended = threading.Event()
        timer = threading.Timer(limit, _report, (iteration, limit, mean, ended))
        timer.daemon = True
        started = time.monotonic()
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            ended.set()
        self._recent.append(time.monotonic() - started)


def _report(iteration: int, limit: float, mean: float, ended: threading.Event) -> None:
    log.error("training: rank %d: iteration %d has not ended after %.0f s; the mean is %.1f s. A rank hangs. The "
              "stacks of this one:", dist.get_rank(), iteration, limit, mean)  # fmt: skip
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    sys.stderr.flush()
    if ended.wait(_SECONDS_FOR_OTHERS):
        log.warning("training: rank %d: iteration %d has ended after all", dist.get_rank(), iteration)
    else:
        os._exit(os.EX_TEMPFAIL)  # the main thread cannot end: it waits
