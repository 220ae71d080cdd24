"""The fork server, which runs each program in a child process.

It reads requests from standard input and answers on standard output (``frames``). A request has one program and its
inputs. For each request the server forks a child. The child sets its own limits, gives up the right to make processes,
and runs the program: a ``function`` program on all inputs one after another, a ``stdin`` program as ``__main__`` on its
one input. A program of the form ``checks`` has a second child, which runs the checks and is the only process that has
them: it reads them itself, as the message after the request, so that they are never in memory that the program's
process is a copy of. The server watches the children from outside, kills them, and reports facts, which the host
interprets. It never compiles, imports or decodes anything that a program made, and it has no expected output.

Invariants:
- One program runs at a time, and none of its processes survives. It cannot make processes (``seccomp``).
- The server enforces limits through the children's CPU clocks, which a program cannot influence by its own timers or
  signal handlers. RLIMIT_CPU is a second limit.
- A program's output is in a memory file of bounded size. Its results go through a pipe that is read up to the same
  bound.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import random
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from megatron_ssd.sandbox.inside.checks import run_checks
from megatron_ssd.sandbox.inside.frames import receive, send
from megatron_ssd.sandbox.inside.preparation import NamedPackages, preimport, warm_up
from megatron_ssd.sandbox.inside.program import (
    execute,
    give_up_root,
    limit_process,
    report_result,
    report_to_checks,
)
from megatron_ssd.sandbox.inside.remote import Link
from megatron_ssd.sandbox.inside.seccomp import PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, Seccomp

RECURSION_LIMIT = 50_000  # as in LiveCodeBench's checker
_CHECKED_FD = 4  # the checks' channel to the program
_SMALLEST_WAIT_MS = 5
_MS_TO_DIE = 1000  # how long a process may run after its partner failed


class Server:
    """Runs programs, each in a child process of its own."""

    def __init__(self, requests: int, *, become: int | None, max_threads: int | None) -> None:
        self._requests, self._become, self._max_threads = requests, become, max_threads
        self._null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(self._null, descriptor)
        self._seccomp = Seccomp()
        self._seccomp.prctl(PR_SET_NO_NEW_PRIVS, 1)
        self._seccomp.prctl(PR_SET_DUMPABLE, 0)  # no child may trace this process or read its memory

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run one program and report what happened: results, output, exit status, CPU seconds."""
        results_read, results_write = os.pipe()
        try:
            if request["form"] == "stdin":
                return self._run_main(request, results_read, results_write)
            if request["form"] == "checks":
                return self._run_checks(request, results_read, results_write)
            pid = self._fork((self._null,) * 3 + (results_write,), request, lambda: execute(request, report_result))
            return watch([pid], results_read, results_write, request)
        finally:
            os.close(results_read)

    def _run_main(self, request: dict[str, Any], results_read: int, results_write: int) -> dict[str, Any]:
        stdin, stdout = os.memfd_create("stdin"), os.memfd_create("stdout")
        try:
            with open(stdin, "wb", closefd=False) as file:
                file.write(request["inputs"][0].encode("utf-8", "surrogatepass"))
            os.lseek(stdin, 0, os.SEEK_SET)
            files = (stdin, stdout, self._null, results_write)
            pid = self._fork(files, request, lambda: execute(request, report_result))
            facts = watch([pid], results_read, results_write, request)
            size = min(os.fstat(stdout).st_size, request["output_bytes"])
            return {**facts, "stdout": os.pread(stdout, size, 0).decode("utf-8", "replace")}
        finally:
            os.close(stdin)
            os.close(stdout)

    def _run_checks(self, request: dict[str, Any], results_read: int, results_write: int) -> dict[str, Any]:
        checks_end, program_end = (end.detach() for end in socket.socketpair())
        nothing = (self._null,) * 3

        def check() -> int:
            return run_checks(self._scripts, Link(_CHECKED_FD, request["output_bytes"]), report_result)

        def read_scripts() -> None:
            self._scripts = receive(self._requests)["scripts"]

        checks = self._fork((*nothing, results_write, checks_end), request, check, before=read_scripts)
        os.close(checks_end)
        program = self._fork((*nothing, program_end), request, lambda: execute(request, report_to_checks))
        os.close(program_end)
        return watch([checks, program], results_read, results_write, request)

    def _fork(
        self,
        files: Sequence[int],
        request: dict[str, Any],
        run: Callable[[], int],
        before: Callable[[], None] = lambda: None,
    ) -> int:
        """Start a child that has ``files`` as descriptors 0, 1, ... and no others.

        ``before`` runs in the child before it gives up its rights.
        """
        if (pid := os.fork()) != 0:
            return pid
        status = 1
        try:
            before()
            # The server's own channels are descriptors 3 and 4, so no source is overwritten by a target.
            for target, source in enumerate(files):
                os.dup2(source, target)
            os.closerange(len(files), 64)
            if self._become is not None:
                give_up_root(self._become)
            self._seccomp.drop_capabilities()
            limit_process(request, self._max_threads)
            self._seccomp.enter()
            random.seed(0)  # the same program gets the same verdict
            status = run()
        finally:
            os._exit(status)


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


def serve(settings: str) -> None:
    """Answer requests until standard input ends.

    Args:
        settings: JSON of ``container.Settings``: ``prelude``, the names that programs have without import (lcb, none);
            ``packages``, name -> folder of those that they may import; ``become``, the user and group that every child
            switches to first; ``max_threads`` of a program and its checks, if they are counted per container.
    """
    chosen = json.loads(settings)
    requests, replies = os.dup(0), os.dup(1)
    server = Server(requests, become=chosen["become"], max_threads=chosen["max_threads"])
    # Process 1 of a namespace ignores signals from inside unless it handles them; Python handles SIGINT.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.meta_path.append(NamedPackages(chosen["packages"]))
    if chosen["prelude"] == "lcb":
        preimport()
    sys.setrecursionlimit(RECURSION_LIMIT)
    sys.set_int_max_str_digits(0)  # problems may print long integers
    warm_up()
    gc.collect()
    gc.freeze()  # so children do not copy pages only to mark objects
    send(replies, {"ready": True, "pid": os.getpid(), "python": platform.python_version()})
    while (request := receive(requests)) is not None:
        send(replies, server.run(request))
