"""Watches the processes of one program from outside: CPU clocks, wall clock, size of the results."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Sequence
from typing import Any

_SMALLEST_WAIT_MS = 5
_MS_TO_DIE = 1000  # how long a process may outlive a partner that failed


def watch(pids: Sequence[int], results_read: int, results_write: int, request: dict[str, Any]) -> dict[str, Any]:
    """Read results until the first of ``pids`` ends or must be killed; then kill and reap all of them.

    Args:
        pids: the process that writes results, and one that it works with. The CPU limit is on their sum.
        results_read: the pipe of the results.
        results_write: its other end, closed here.
        request: the limits.
    """
    os.close(results_write)
    handles = [os.pidfd_open(pid) for pid in pids]
    try:
        results, cpu_marks, killed = _read_results(pids, handles[0], results_read, request)
        if killed:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        exits, cpu_total = _reap(pids, handles)
    finally:
        for handle in handles:
            os.close(handle)
    return {
        "results": bytes(results[: request["output_bytes"]]).decode("utf-8", "replace"),
        "exits": exits,
        "killed": killed,
        "cpu_total": cpu_total,
        "cpu_marks": cpu_marks,
        "stdout": "",
    }


def _read_results(
    pids: Sequence[int], handle: int, results_read: int, request: dict[str, Any]
) -> tuple[bytearray, list[float], str]:
    """The bytes of the pipe, the CPU seconds at each result, and the limit that was exceeded ("" for none)."""
    clocks = [(~pid << 3) | 2 for pid in pids]  # the kernel's name for the CPU clock of a process
    poller = select.poll()
    poller.register(results_read, select.POLLIN)
    poller.register(handle, select.POLLIN)
    results = bytearray()
    num_results = 0 if request["form"] == "stdin" else request["num_inputs"]
    cpu_marks, wall_mark = [0.0], time.monotonic()
    while True:
        cpu_left = cpu_marks[-1] + request["cpu_seconds"] - sum(map(time.clock_gettime, clocks))
        wall_left = wall_mark + request["wall_seconds"] - time.monotonic()
        if cpu_left <= 0 or wall_left <= 0:
            return results, cpu_marks[1:], "cpu" if cpu_left <= 0 else "wall"
        ready = dict(poller.poll(max(_SMALLEST_WAIT_MS, 1000 * min(cpu_left, wall_left))))
        if results_read in ready:
            chunk = os.read(results_read, 1 << 16)
            if not chunk:
                poller.unregister(results_read)  # closed, but the process has not ended yet
            results += chunk
            # Limits start again with each input's result, but never more often than there are inputs.
            for _ in range(min(chunk.count(b"\n"), num_results + 1 - len(cpu_marks))):
                cpu_marks.append(sum(map(time.clock_gettime, clocks)))
                wall_mark = time.monotonic()
            if len(results) > request["output_bytes"]:
                return results, cpu_marks[1:], "output"
        elif handle in ready:
            return results, cpu_marks[1:], ""


def _reap(pids: Sequence[int], handles: Sequence[int]) -> tuple[list[int], float]:
    """Exit statuses (0 for a process that was killed here) and total CPU seconds. The first process has ended."""
    exits, cpu_total = list[int](), 0.0
    for pid, handle in zip(pids, handles, strict=True):
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        late = bool(exits) and not poller.poll(0 if exits[0] == 0 else _MS_TO_DIE)
        if late:
            os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        exits.append(0 if late else os.waitstatus_to_exitcode(status))
        cpu_total += usage.ru_utime + usage.ru_stime
    return exits, cpu_total
