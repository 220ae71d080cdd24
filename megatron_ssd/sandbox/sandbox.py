"""Where untrusted programs run: one bubblewrap container a worker, a small fork server inside it.

What holds with ``kind=bubblewrap``:
- No network, no access to the machine's files but the system's and Python's own and the named packages', read-only;
  nothing at all is writable, and the kernel's own stores (System V memory, message queues, keys) are refused, so
  nothing that a program does is there for the next one. An empty environment, an own process-id namespace, no
  capabilities, no new privileges, nobody's user and group ids (``container`` tells where outside as well as inside).
- A program is one process (``inside.seccomp`` refuses more) with limits on CPU time, address space, file and output
  size, open files and, on Linux 5.14 or later, threads. The server is process 1 of its namespace, so a program cannot
  signal it.
- Expected outputs never enter: results come out and are compared by the host. Assert scripts, which hold theirs, run in
  a process of their own beside the program's (``inside.checks``) and are never in its memory.
- The container dies with the thread that started it.

What it does not cover:
- Bugs of the kernel, and of CPython as far as they reach the kernel. Side channels.
- Programs of one container share its namespaces and, one after another, its memory image: each starts as a copy of the
  same server. A program that broke the server would be noticed only if the server then stopped answering.
- Open memory files count apart from a program's address space: at most ``OPEN_FILES`` of the output limit each, and as
  many again on their way through a socket.
- It reads what every user may read under /usr and in Python's own folder, packages installed there excepted.

Programs have Python's standard library and the packages that ``evaluation.sandbox.packages`` names.

With ``kind=rlimit_only`` the same server runs as a plain process of this user: limits hold against honest mistakes, and
nothing is isolated.

Machines: Linux 5.3 or later on x86-64 or AArch64.
"""

from __future__ import annotations

import json
import logging
import os
import select
import struct
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from megatron_ssd.closing import Closing
from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.errors import UserError
from megatron_ssd.sandbox.container import ENVIRONMENT, LaunchMode, launch_modes
from megatron_ssd.sandbox.execution import Execution, Limits, Program, SandboxBrokenError, interpret

log = logging.getLogger(__name__)

_START_SECONDS = 60.0
_SLACK_SECONDS = 30.0  # beyond a request's own wall limits, before its server counts as dead


class Sandbox(Closing):
    """One container. Not for several threads at once; starts when first used, and again after it broke.

    Raises:
        UserError: bubblewrap is asked for and missing, or cannot make a container on this machine.
    """

    def __init__(self, config: SandboxConfig) -> None:
        self._modes = launch_modes(config)
        self._process: subprocess.Popen[bytes] | None = None

    def execute(self, program: Program, inputs: Sequence[str], limits: Limits) -> Execution:
        """Run ``program`` on ``inputs``: exactly one for a ``stdin`` program, all of them for a function, the scripts
        for ``checks``.

        Raises:
            SandboxBrokenError: the container failed under it. The next call starts a fresh one.
        """
        assert program.form != "stdin" or len(inputs) == 1
        is_checked = program.form == "checks"
        request = {
            "source": program.source,
            "form": program.form,
            "function_name": program.function_name,
            "class_name": program.class_name,
            "inputs": [] if is_checked else list(inputs),
            "num_inputs": len(inputs),
            "cpu_seconds": limits.cpu_seconds,
            "wall_seconds": limits.wall_seconds,
            "memory_bytes": limits.memory_bytes,
            "output_bytes": limits.output_bytes,
        }
        try:
            process = self._process or self.start()
            _write_frame(process, request)
            if is_checked:  # apart, see ``inside.server``
                _write_frame(process, {"scripts": list(inputs)})
            facts = _read_frame(process, limits.wall_seconds * len(inputs) + _SLACK_SECONDS)
            return interpret(facts, program, len(inputs), limits)
        except (OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            self.close()
            raise SandboxBrokenError(f"{type(error).__name__}: {error}") from error

    def start(self) -> subprocess.Popen[bytes]:
        """Start the container in the strictest way that works here, and wait for its server."""
        self.close()
        complaints: dict[str, None] = {}
        for mode in self._modes:
            try:
                self._process = _start(mode)
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                complaints[str(error)] = None
                continue
            if mode.weakness:
                log.warning("sandbox: programs %s; stricter modes fail (%s)", mode.weakness, "; ".join(complaints))
            self._modes = (mode,)
            return self._process
        raise UserError(
            f"sandbox {self._modes[0].command[0]}",
            rule=f"cannot start here ({'; '.join(complaints)})",
            fix="allow unprivileged user namespaces (in Docker: --security-opt seccomp=unconfined), or name "
            "evaluation.sandbox.kind=rlimit_only, which limits programs and isolates nothing",
        )

    def close(self) -> None:
        """End the container, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _start(mode: LaunchMode) -> subprocess.Popen[bytes]:
    """A server that answers. Raises ``OSError`` or ``ValueError`` with its last words where none does."""
    as_user: dict[str, Any] = {} if mode.user is None else {"user": mode.user, "group": mode.user, "extra_groups": ()}
    process = subprocess.Popen(
        mode.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        env=ENVIRONMENT, cwd="/", start_new_session=True, **as_user,
    )  # fmt: skip
    try:
        hello = _read_frame(process, _START_SECONDS)
    except (OSError, ValueError) as error:
        process.kill()
        _, complaint = process.communicate()
        lines = complaint.decode("utf-8", "replace").strip().splitlines() or [str(error)]
        raise ConnectionError(lines[-1]) from None
    assert hello.get("ready") is True
    return process


def _write_frame(process: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
    assert process.stdin is not None
    data = json.dumps(message).encode()
    view = memoryview(struct.pack(">I", len(data)) + data)
    while view:
        view = view[os.write(process.stdin.fileno(), view) :]


def _read_frame(process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
    """The server's next message. Raises ``OSError`` or ``ValueError`` where none comes in time."""
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    (length,) = struct.unpack(">I", _read_exactly(process.stdout.fileno(), 4, deadline))
    message = json.loads(_read_exactly(process.stdout.fileno(), length, deadline))
    if not isinstance(message, dict):
        raise ValueError("the server's answer is no object")
    return message


def _read_exactly(descriptor: int, count: int, deadline: float) -> bytes:
    data = bytearray()
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    while len(data) < count:
        if not poller.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
            raise TimeoutError("the sandbox does not answer")
        chunk = os.read(descriptor, min(count - len(data), 1 << 20))
        if not chunk:
            raise ConnectionError("the sandbox ended")
        data += chunk
    return bytes(data)
