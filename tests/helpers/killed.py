"""Kills a command in the middle of its work."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_SECONDS = 600  # only a hang takes as long


def kill_when(command: Sequence[str], ready: Callable[[], bool], log: Path, number: int = signal.SIGKILL) -> int:
    """Start the command, send it a signal once ``ready`` returns True, and wait until all of its session is gone.

    Returns:
        Its exit status, negative if the signal killed it.
    """
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    deadline = time.monotonic() + _SECONDS
    while not ready():
        assert process.poll() is None, f"ended before it could be killed:\n{log.read_text()[-6000:]}"
        assert time.monotonic() < deadline, f"the state was never reached:\n{log.read_text()[-6000:]}"
        time.sleep(0.002)
    process.send_signal(number)
    status = process.wait(_SECONDS)
    while any(_session(entry) == process.pid for entry in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < deadline, "a process outlived the one that started it"
        time.sleep(0.05)
    return status


def _session(entry: Path) -> int | None:
    """Session id of the process; None if it has ended."""
    try:
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[3])
