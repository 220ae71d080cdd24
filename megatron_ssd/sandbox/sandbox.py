"""Runs untrusted programs in a container.

Each worker has its own bubblewrap container with a small fork server inside. With ``kind=bubblewrap``:
- There is no network. Of the machine's files only the system's, Python's and the named packages' are visible,
  read-only. Nothing is writable, and the kernel's own stores (System V memory, message queues, keys) are refused, so a
  program leaves nothing behind for the next one. The environment is empty. A program has its own process-id namespace,
  no capabilities, no new privileges, and the user and group ids of nobody (``container`` says when also outside).
- A program is one process (``inside.seccomp`` refuses more) with limits on CPU time, address space, file and output
  size, open files and, on Linux 5.14 or later, threads. The server is process 1 of its namespace, so a program cannot
  signal it.
- Outputs and return values come out, and the host compares them: their expected values never enter the container.
  Checks run in the program's own process, as in the official checkers (``inside.checks``).
- The container dies with the thread that started it.

Not covered:
- Bugs of the kernel, and of CPython as far as they reach the kernel. Side channels.
- Programs of one container share its namespaces, and each starts as a copy of the same server. A program that broke the
  server would be noticed only if the server then stopped answering.
- Open memory files do not count towards a program's address space: it can have ``OPEN_FILES`` of them, each up to the
  output limit, and as many again in transit through a socket.
- A program can read what every user can read under /usr and in Python's own folder, except for packages installed
  there.

Programs have Python's standard library and the packages in ``evaluation.sandbox.packages``.

With ``kind=rlimit_only`` the same server runs as an ordinary process of this user: limits stop programs that use too
much, but nothing is isolated.

The machine needs Linux 5.3 or later on x86-64 or AArch64.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.errors import UserError
from megatron_ssd.sandbox.container import ENVIRONMENT, LaunchMode, launch_modes
from megatron_ssd.sandbox.execution import Execution, Failure, interpret
from megatron_ssd.sandbox.inside.frames import receive, send, write_all
from megatron_ssd.schema import ProblemForm

log = logging.getLogger(__name__)

_START_SECONDS = 60.0
_SLACK_SECONDS = 30.0  # added to the wall limits of a request before its server is considered dead
_LOAD_SECONDS = 600.0  # CPU and wall seconds to read a reference, before the program starts
_REFERENCE_BYTES = 4 << 30  # of a reference's file


class SandboxBrokenError(RuntimeError):
    """The container or its server ended, or its answer is invalid. The program it ran has no verdict yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Source text, how to run it, and what it finds around it (``inside.preparation``).

    It runs as ``__main__`` (``stdin``), through a function or method (``function``), in front of assert scripts
    (``checks``), or through a function whose results are compared with a reference's (``evalplus``).
    ``max_int_digits`` is Python's limit for conversions of integers to text, 0 for none. With ``text_streams``, the
    standard streams are texts instead of files, and standard input cannot be read.
    """

    source: str
    form: ProblemForm
    function_name: str | None = None
    class_name: str | None = None
    prelude: Literal["lcb", "none"] = "lcb"
    recursion_limit: int = 50_000
    max_int_digits: int = 0
    text_streams: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """CPU and wall seconds per input; bytes of address space and of output per program.

    Scripts and inputs with a reference have one limit of CPU seconds for all of them together.
    """

    cpu_seconds: float
    wall_seconds: float
    memory_bytes: int
    output_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Inputs, and the canonical solution's results on them (``inside.evalplus``).

    Args:
        file: has both, and is read only in sandboxes.
        rule: one of ``inside.evalplus.RULES``.
        atol: absolute tolerance.
        cpu_seconds: limit of CPU seconds for each input.
    """

    file: Path
    rule: str
    atol: float
    cpu_seconds: tuple[float, ...]


class Sandbox(AbstractContextManager["Sandbox"]):
    """One container. It starts at its first use, and again after it broke. Not thread-safe.

    Raises:
        UserError: bubblewrap is configured but missing, or cannot make a container on this machine.
    """

    def __init__(self, config: SandboxConfig) -> None:
        self._stdin = _StdinFile()
        self._modes = launch_modes(config, self._stdin.path)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    def execute(self, program: Program, inputs: Sequence[str], limits: Limits, *, go_on: bool = False) -> Execution:
        """Run ``program`` on ``inputs``: exactly one for a ``stdin`` program, all of them for a function, the scripts
        for ``checks``. With ``go_on``, the scripts after one that failed run as well.

        Raises:
            SandboxBrokenError: the container failed during the run. The next call starts a fresh one.
        """
        assert program.form != "stdin" or len(inputs) == 1
        interval = limits.cpu_seconds, limits.wall_seconds
        key = "scripts" if program.form == "checks" else "inputs"
        if program.form == "stdin":
            self._stdin.write(inputs[0])
        request = {
            **_request(program, limits),
            key: [] if program.form == "stdin" else list(inputs),
            "go_on": go_on,
            "intervals": [interval] * (1 + (len(inputs) if program.form == "function" or go_on else 0)),
        }
        return interpret(self._answer(request), program.form, len(inputs))

    def compare(self, program: Program, reference: Reference, limits: Limits) -> Execution:
        """Run an ``evalplus`` program. Its ``outputs`` are one entry if it passes, else none.

        Raises:
            SandboxBrokenError: see ``execute``.
        """
        request = {
            **_request(program, limits),
            "rule": reference.rule,
            "atol": reference.atol,
            "intervals": [
                (_LOAD_SECONDS, _LOAD_SECONDS),
                *((cpu, limits.wall_seconds) for cpu in (limits.cpu_seconds, *reference.cpu_seconds)),
            ],
            "total": (limits.cpu_seconds, limits.wall_seconds),
        }
        with reference.file.open("rb") as file:
            return interpret(self._answer(request, file.fileno()), program.form, 1)

    def make_reference(
        self, canonical: Program, inputs: str, rule: str, limits: Limits, file: Path
    ) -> tuple[float, ...] | Failure:
        """Write inputs and the canonical solution's results on them to ``file``. Returns its CPU seconds for each.

        Args:
            canonical: the canonical solution.
            inputs: the Python literal of a list of lists of arguments.
            rule: see ``Reference``.
            limits: for all inputs together.
            file: written by the sandbox, and to be read only in sandboxes.

        Raises:
            SandboxBrokenError: see ``execute``.
        """
        request = {
            **_request(canonical, dataclasses.replace(limits, output_bytes=_REFERENCE_BYTES)),
            "form": "reference",
            "inputs": inputs,
            "rule": rule,
            "intervals": [(limits.cpu_seconds, limits.wall_seconds)] * 2,
        }
        with file.open("wb") as opened:
            execution = interpret(self._answer(request, opened.fileno()), "function", 1)
        if execution.ending != "completed":
            return Failure(ending=execution.ending, detail=execution.detail)
        (seconds,) = execution.outputs
        return tuple(json.loads(str(seconds)))

    def _answer(self, request: dict[str, Any], file: int | None = None) -> dict[str, Any]:
        """The server's facts about a request. Raises ``SandboxBrokenError``."""
        try:
            process = self._process or self.start()
            assert self._channel is not None
            send(self._channel.fileno(), {**request, "has_file": file is not None})
            if file is not None:
                socket.send_fds(self._channel, [b"f"], [file])
            seconds = sum(wall for _, wall in request["intervals"])
            return _receive(process, seconds + _SLACK_SECONDS)
        except (OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            self.close()
            raise SandboxBrokenError(f"{type(error).__name__}: {error}") from error

    def start(self) -> subprocess.Popen[bytes]:
        """Start the container in the strictest mode that works here, and wait for its server."""
        self.close()
        complaints: dict[str, None] = {}
        for mode in self._modes:
            try:
                self._process, self._channel = _start(mode)
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
            fix="allow unprivileged user namespaces (in Docker: --security-opt seccomp=unconfined), or set "
            "evaluation.sandbox.kind=rlimit_only, which limits programs and isolates nothing",
        )

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the container, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None


class _StdinFile:
    """The file of a program's standard input, which every user can read. It is removed with this object."""

    def __init__(self) -> None:
        self._file = tempfile.NamedTemporaryFile(prefix="megatron_ssd_stdin_", buffering=0)  # noqa: SIM115
        os.fchmod(self._file.fileno(), 0o444)
        self.path = Path(self._file.name)

    def write(self, text: str) -> None:
        """Replace what is in the file. It keeps its blocks, since to free and get them would take a tenth of a run."""
        data = text.encode("utf-8", "surrogatepass")
        self._file.seek(0)
        write_all(self._file.fileno(), data)
        self._file.truncate(len(data))


def _start(mode: LaunchMode) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A server that answers. Raises ``OSError`` or ``ValueError`` with its last line of output if it does not."""
    as_user: dict[str, Any] = {} if mode.user is None else {"user": mode.user, "group": mode.user, "extra_groups": ()}
    channel, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            mode.command, stdin=theirs.fileno(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
            env=ENVIRONMENT, cwd="/", start_new_session=True, **as_user,
        )  # fmt: skip
    try:
        hello = _receive(process, _START_SECONDS)
    except (OSError, ValueError) as error:
        channel.close()
        process.kill()
        _, complaint = process.communicate()
        lines = complaint.decode("utf-8", "replace").strip().splitlines() or [str(error)]
        raise ConnectionError(lines[-1]) from None
    assert hello.get("ready") is True
    return process, channel


def _request(program: Program, limits: Limits) -> dict[str, Any]:
    """What every request has."""
    return {
        **{field: getattr(program, field) for field in Program.__slots__},
        "memory_bytes": limits.memory_bytes,
        "output_bytes": limits.output_bytes,
        "total": None,
    }


def _receive(process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
    """The server's next message. Raises ``OSError`` or ``ValueError`` if none comes in time."""
    assert process.stdout is not None
    message = receive(process.stdout.fileno(), deadline=time.monotonic() + seconds)
    if message is None:
        raise ConnectionError("the sandbox ended")
    if not isinstance(message, dict):
        raise ValueError("the server's answer is not an object")
    return message
