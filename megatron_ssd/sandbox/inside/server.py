"""The fork server, which runs each program in a child process.

It reads requests from standard input and answers on standard output (``frames``). A request has one program with its
inputs or checks. For each request the server forks a child. The child sets its own limits, gives up the right to make
processes, and runs the program (``_RUN`` has a function for each form). The server watches the child from outside,
kills it, and reports facts, which the host interprets. It never compiles, imports or decodes anything that a program
made.

Invariants:
- One program runs at a time, and none of its processes survives. It cannot make processes (``seccomp``).
- The server enforces limits through the child's CPU clock, which a program cannot influence by its own timers or signal
  handlers. RLIMIT_CPU is a second limit.
- A program's output is in a memory file of bounded size. Its results go through a pipe that is read up to the same
  bound.
- The random word of a request, by which checks prove that they ended, is made after the child was forked.
"""

from __future__ import annotations

import gc
import io
import json
import os
import random
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from megatron_ssd.sandbox.inside.checks import WORD_BYTES, run_checks
from megatron_ssd.sandbox.inside.evalplus import make_reference, run_inputs
from megatron_ssd.sandbox.inside.frames import receive, send
from megatron_ssd.sandbox.inside.preparation import NamedPackages, Surroundings, warm_up
from megatron_ssd.sandbox.inside.program import RESULTS_FD, execute, give_up_root, limit_process
from megatron_ssd.sandbox.inside.seccomp import PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, Seccomp

_RUN: Mapping[str, Callable[[dict[str, Any]], int]] = {
    "stdin": execute, "function": execute, "checks": run_checks, "reference": make_reference, "evalplus": run_inputs,
}  # fmt: skip
_PROVEN = ("checks", "evalplus", "reference")  # forms that have the random word
_SMALLEST_WAIT_MS = 5


class Server:
    """Runs programs, each in a child process of its own.

    Args:
        stdin_path: the file that has the standard input of the next program.
        become: the user and group that every child switches to.
        max_threads: see ``limit_process``.
    """

    def __init__(self, *, stdin_path: str, become: int | None, max_threads: int | None) -> None:
        self._surroundings, self._stdin_path = Surroundings(), stdin_path
        self._become, self._max_threads = become, max_threads
        self._null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(self._null, descriptor)
        self._seccomp = Seccomp()
        self._seccomp.prctl(PR_SET_NO_NEW_PRIVS, 1)
        self._seccomp.prctl(PR_SET_DUMPABLE, 0)  # no child may trace this process or read its memory

    def run(self, request: dict[str, Any], file: int | None) -> dict[str, Any]:
        """Run one program and report what happened: results, output, exit status, CPU seconds.

        Args:
            request: see ``sandbox.Sandbox.execute``.
            file: the descriptor of a reference's results, closed here.
        """
        form, null = request["form"], self._null
        files = [null, null, null]
        if form == "stdin":
            files[:2] = os.open(self._stdin_path, os.O_RDONLY), os.memfd_create("stdout")
        results_read, results_write = os.pipe()
        word_read, word_write = os.pipe() if form in _PROVEN else (null, null)
        files += [results_write, *([word_read] if form in _PROVEN else []), *([] if file is None else [file])]
        try:
            pid = self._fork(files, request)
            os.close(files.pop(RESULTS_FD))
            word = os.urandom(WORD_BYTES // 2).hex().encode()
            os.write(word_write, word)
            results, facts = watch(pid, results_read, request)
            size = 0 if form != "stdin" else min(os.fstat(files[1]).st_size, request["output_bytes"])
            output = os.pread(files[1], size, 0)
            if size == request["output_bytes"] and not facts["killed"]:
                facts = {**facts, "killed": "output", "limit": size}
        finally:
            for descriptor in {*files, results_read, word_write} - {null}:
                os.close(descriptor)
        return {
            **facts,
            "reached_end": form in _PROVEN and results.endswith(word),
            "results": results[: request["output_bytes"]].decode("utf-8", "replace"),
            "stdout": output.decode("utf-8", "replace"),
        }

    def _fork(self, files: Sequence[int], request: dict[str, Any]) -> int:
        """Start a child that has ``files`` as descriptors 0, 1, ... and no others."""
        if (pid := os.fork()) != 0:
            return pid
        status = 1
        try:
            # First to numbers above all targets, so that no source is overwritten by a target.
            high = [os.dup2(source, 64 + target) for target, source in enumerate(files)]
            for target, source in enumerate(high):
                os.dup2(source, target)
            os.closerange(len(files), 128)
            if self._become is not None:
                give_up_root(self._become)
            self._seccomp.drop_capabilities()
            limit_process(request, self._max_threads)
            self._seccomp.enter()
            random.seed(0)  # the same program gets the same verdict
            self._surroundings.enter(request)
            status = _RUN[request["form"]](request)
        finally:
            os._exit(status)


def watch(pid: int, results_read: int, request: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Read results until the child ends or must be killed, and reap it. Returns the results and the facts."""
    handle = os.pidfd_open(pid)
    try:
        results, cpu_marks, killed, limit = _read_results(pid, handle, results_read, request)
        if killed:
            os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
    finally:
        os.close(handle)
    return bytes(results), {
        "exit": os.waitstatus_to_exitcode(status),
        "killed": killed,
        "limit": limit,
        "cpu_total": usage.ru_utime + usage.ru_stime,
        "cpu_marks": cpu_marks,
    }


def _read_results(
    pid: int, handle: int, results_read: int, request: dict[str, Any]
) -> tuple[bytearray, list[float], str, float]:
    """The bytes of the pipe, the CPU seconds at each line, and the exceeded limit ("" for none) with its value.

    A line ends one of the request's ``intervals``, each with its limits of CPU and wall seconds. ``total``, if there is
    one, limits all intervals but the first together.
    """
    clock = (~pid << 3) | 2  # the kernel's name for the CPU clock of a process
    poller = select.poll()
    poller.register(results_read, select.POLLIN)
    poller.register(handle, select.POLLIN)
    results, intervals, total = bytearray(), request["intervals"], request["total"]
    cpu_marks, wall_marks = [0.0], [time.monotonic()]
    while True:
        used, now = time.clock_gettime(clock), time.monotonic()
        cpu, wall = intervals[len(cpu_marks) - 1]
        left = [(cpu_marks[-1] + cpu - used, "cpu", cpu), (wall_marks[-1] + wall - now, "wall", wall)]
        if total and len(cpu_marks) > 1:
            left += [
                (cpu_marks[1] + total[0] - used, "cpu", total[0]),
                (wall_marks[1] + total[1] - now, "wall", total[1]),
            ]
        seconds, killed, limit = min(left)
        if seconds <= 0:
            return results, cpu_marks[1:], killed, limit
        ready = dict(poller.poll(max(_SMALLEST_WAIT_MS, 1000 * seconds)))
        if results_read in ready:
            chunk = os.read(results_read, 1 << 16)
            if not chunk:
                poller.unregister(results_read)  # closed, but the process has not ended yet
            results += chunk
            # Limits start again with each interval, but never more often than there are intervals.
            for _ in range(min(chunk.count(b"\n"), len(intervals) - len(cpu_marks))):
                cpu_marks.append(time.clock_gettime(clock))
                wall_marks.append(time.monotonic())
            if len(results) > request["output_bytes"]:
                return results, cpu_marks[1:], "output", request["output_bytes"]
        elif handle in ready:
            return results, cpu_marks[1:], "", 0


def serve(settings: str) -> None:
    """Answer requests until standard input ends.

    Args:
        settings: a JSON object: ``packages``, name -> folder of those that programs may import, and the arguments of
            ``Server``.
    """
    chosen = json.loads(settings)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogatepass")  # the official checkers take any text that a program prints
    requests, replies = socket.socket(fileno=os.dup(0)), os.dup(1)
    server = Server(**{key: chosen[key] for key in ("stdin_path", "become", "max_threads")})
    # Process 1 of a namespace ignores signals from inside unless it handles them; Python handles SIGINT.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.meta_path.append(NamedPackages(chosen["packages"]))
    warm_up()
    gc.collect()
    gc.freeze()  # so children do not copy pages only to mark objects
    send(replies, {"ready": True})
    while (request := receive(requests.fileno())) is not None:
        files = socket.recv_fds(requests, 1, 1)[1] if request["has_file"] else [None]  # it follows the message
        send(replies, server.run(request, files[0]))
