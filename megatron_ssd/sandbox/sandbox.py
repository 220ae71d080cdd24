"""Runs untrusted programs in a container.

Each worker has its own bubblewrap container with a small fork server inside. With ``kind=bubblewrap``:
- There is no network. Of the machine's files only the system's, Python's and the named packages' are visible,
  read-only. Nothing is writable, and the kernel's own stores (System V memory, message queues, keys) are refused, so a
  program leaves nothing behind for the next one. The environment is empty. A program has its own process-id namespace,
  no capabilities, no new privileges, and the user and group ids of nobody (``container`` says when also outside).
- A program is one process (``inside.seccomp`` refuses more) with limits on CPU time, address space, file and output
  size, open files and, on Linux 5.14 or later, threads. The server is process 1 of its namespace, so a program cannot
  signal it.
- Expected outputs never enter the container: results come out and the host compares them. Assert scripts hold expected
  values. They run in their own process next to the program's (``inside.checks``) and are never in its memory.
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

import json
import logging
import subprocess
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.errors import UserError
from megatron_ssd.sandbox.container import ENVIRONMENT, LaunchMode, launch_modes
from megatron_ssd.sandbox.inside.frames import receive, send
from megatron_ssd.schema import ProblemForm

log = logging.getLogger(__name__)

_START_SECONDS = 60.0
_SLACK_SECONDS = 30.0  # added to the wall limits of a request before its server is considered dead
_VALUE = '{"value": '  # how a program's process begins a line with a result
_DETAIL_CHARACTERS = 300

Ending = Literal[
    "completed", "runtime_error", "timeout", "starved", "memory", "syntax_error", "failed_check", "broken_check"
]
_ERROR_ENDINGS: dict[str, Ending] = {
    "syntax": "syntax_error", "memory": "memory", "check": "failed_check", "broken_check": "broken_check",
}  # fmt: skip
_CHECK_ERRORS = ("check", "broken_check")  # a program cannot write these


class SandboxBrokenError(RuntimeError):
    """The container or its server ended, or its answer is invalid. The program it ran has no verdict yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Source text, and how to run it: as ``__main__``, through a function or method, or through assert scripts."""

    source: str
    form: ProblemForm
    function_name: str | None = None
    class_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """CPU and wall seconds per input; bytes of address space and of output per program."""

    cpu_seconds: float
    wall_seconds: float
    memory_bytes: int
    output_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """What one program did.

    ``outputs`` has one entry per finished input, in order: standard output for ``stdin`` programs, a value in the
    encoding of ``inside.values`` for functions, nothing of interest for each script of ``checks`` that reached its end.
    ``cpu_seconds`` are the CPU seconds of those inputs. ``ending`` says why it did not finish more: ``starved`` means
    that the wall limit passed before the CPU limit did, ``failed_check`` that an assertion failed, ``broken_check``
    that a script asks for something impossible.
    """

    outputs: tuple[str, ...]
    cpu_seconds: tuple[float, ...]
    ending: Ending
    detail: str = ""
    cpu_total: float = 0.0


class Sandbox(AbstractContextManager["Sandbox"]):
    """One container. It starts at its first use, and again after it broke. Not thread-safe.

    Raises:
        UserError: bubblewrap is configured but missing, or cannot make a container on this machine.
    """

    def __init__(self, config: SandboxConfig) -> None:
        self._modes = launch_modes(config)
        self._process: subprocess.Popen[bytes] | None = None

    def execute(self, program: Program, inputs: Sequence[str], limits: Limits) -> Execution:
        """Run ``program`` on ``inputs``: exactly one for a ``stdin`` program, all of them for a function, the scripts
        for ``checks``.

        Raises:
            SandboxBrokenError: the container failed during the run. The next call starts a fresh one.
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
            assert process.stdin is not None
            send(process.stdin.fileno(), request)
            if is_checked:  # as a separate message, see ``inside.server``
                send(process.stdin.fileno(), {"scripts": list(inputs)})
            facts = _receive(process, limits.wall_seconds * len(inputs) + _SLACK_SECONDS)
            return _interpret(facts, program, len(inputs), limits)
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


def _start(mode: LaunchMode) -> subprocess.Popen[bytes]:
    """A server that answers. Raises ``OSError`` or ``ValueError`` with its last line of output if it does not."""
    as_user: dict[str, Any] = {} if mode.user is None else {"user": mode.user, "group": mode.user, "extra_groups": ()}
    process = subprocess.Popen(
        mode.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        env=ENVIRONMENT, cwd="/", start_new_session=True, **as_user,
    )  # fmt: skip
    try:
        hello = _receive(process, _START_SECONDS)
    except (OSError, ValueError) as error:
        process.kill()
        _, complaint = process.communicate()
        lines = complaint.decode("utf-8", "replace").strip().splitlines() or [str(error)]
        raise ConnectionError(lines[-1]) from None
    assert hello.get("ready") is True
    return process


def _receive(process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
    """The server's next message. Raises ``OSError`` or ``ValueError`` if none comes in time."""
    assert process.stdout is not None
    message = receive(process.stdout.fileno(), deadline=time.monotonic() + seconds)
    if message is None:
        raise ConnectionError("the sandbox ended")
    if not isinstance(message, dict):
        raise ValueError("the server's answer is not an object")
    return message


def _interpret(facts: dict[str, Any], program: Program, num_inputs: int, limits: Limits) -> Execution:
    """The execution that the server's facts describe. Everything that the program can write is treated as text."""
    values, error = _parse_results(facts["results"], trusted=program.form == "checks")
    ending, detail = _ending(facts, error, limits)
    outputs, cpu = [facts["stdout"]], [facts["cpu_total"]]
    if program.form != "stdin":
        outputs = values[:num_inputs]
        starts = [0.0, *facts["cpu_marks"]]
        cpu = [end - start for start, end in zip(starts, facts["cpu_marks"], strict=False)]
        if ending == "completed" and len(outputs) < num_inputs:
            ending, detail = "runtime_error", "the program ended before its function returned"
    elif ending != "completed":
        outputs = []
    return Execution(
        outputs=tuple(outputs),
        cpu_seconds=tuple(cpu[: len(outputs)]),
        ending=ending,
        detail=detail,
        cpu_total=facts["cpu_total"],
    )


def _parse_results(text: str, *, trusted: bool) -> tuple[list[str], dict[str, str] | None]:
    """The JSON texts of the returned values, and the error that ended the program, if there was one."""
    values: list[str] = []
    for line in text[: text.rfind("\n") + 1].split("\n")[:-1]:
        if line.startswith(_VALUE):
            values.append(line[len(_VALUE) : -1])
            continue
        try:
            result = json.loads(line)
            error, detail = str(result["error"]), _shown(str(result["detail"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            error, detail = "runtime", "the program wrote into the channel of its results"
        return values, {"error": "runtime" if error in _CHECK_ERRORS and not trusted else error, "detail": detail}
    return values, None


def _shown(detail: str) -> str:
    """``detail`` as one short line that is safe in any file and terminal."""
    line = " ".join(detail[: 10 * _DETAIL_CHARACTERS].split())[:_DETAIL_CHARACTERS]
    return "".join(c if c.isprintable() else "\ufffd" for c in line)


def _ending(facts: dict[str, Any], error: dict[str, str] | None, limits: Limits) -> tuple[Ending, str]:
    killed, status = facts["killed"], facts["exits"][-1]  # the program's own process is the last
    if killed == "cpu":
        return "timeout", f"more than {limits.cpu_seconds:g} s of CPU time"
    if killed == "wall":
        return "starved", f"more than {limits.wall_seconds:g} s of wall time"
    if killed == "output" or len(facts["stdout"].encode("utf-8", "replace")) >= limits.output_bytes:
        return "runtime_error", f"more than {limits.output_bytes >> 20} MiB of output"
    if error is not None and (error["error"] != "ended" or error["detail"]):
        return _ERROR_ENDINGS.get(error["error"], "runtime_error"), error["detail"]
    if status == -9:
        return "memory", "killed by the kernel"
    if status != 0:
        return "runtime_error", f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    if error is not None:
        return "runtime_error", "the program ended before its checks did"
    if any(facts["exits"]):
        return "runtime_error", "the program broke the process of its checks"
    return "completed", ""
