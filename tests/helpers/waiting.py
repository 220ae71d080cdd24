"""Waits for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

_SECONDS = 60  # only a hang takes as long


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when ``condition`` returns True."""
    deadline = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether the process exists and has not ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
