"""Starts Python processes as forks of a process that has imported the project's libraries.

A fresh interpreter spends five seconds of CPU time on imports of Megatron-Core and nine on those of vLLM. Inside
``forks()`` a ``subprocess.Popen`` of this interpreter with a script, a module or a program text, or a process that
``multiprocessing`` spawns, asks ``tests.helpers.zygote`` for a fork instead. The fork gets the arguments, environment,
folder, descriptors, session and process group of the command, and is a child of the process that starts it, so that
signals, exit statuses and the death of a parent mean what they mean for a fresh interpreter. The processes that it
starts are forks too.

Only a fresh interpreter shows whether a script imports what it needs, so each script has a test with
``fresh_interpreters()``.
"""

from __future__ import annotations

import _posixsubprocess
import contextlib
import ctypes
import fcntl
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_ssd.process import die_with_parent
from tests.helpers.paths import ROOT

FREE_NUMBERS = 500  # no command uses descriptors from here on
MAX_BYTES = 1 << 17  # of a command
_FOR_ENGINES = {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}  # read when vLLM is imported
_UNSET = ("OMP_NUM_THREADS",)  # a fork sets its own number
# The interpreter or a library reads these when it starts. A command with other values needs a fresh interpreter.
_READ_AT_START = ("PYTHON", "LD_", "LC_", "LANG", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "HF_HOME")
_SET_BY_FORK = {"PYTHONPATH", "PYTHONSAFEPATH", "PYTHONUNBUFFERED"}
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

_fork_exec_fresh = _posixsubprocess.fork_exec
_lock = threading.Lock()
_zygote: socket.socket | None = None  # of this process


@dataclass(frozen=True)
class Command:
    """A process to start.

    Args:
        words: script, module or program text with arguments.
        unbuffered: whether its standard streams are not buffered.
        descriptors: the numbers that it has for the descriptors that are sent along.
        parent: process id of its parent.
        process_group: as for ``subprocess.Popen``; -1 for the parent's.
        ignored_signals: those that its parent ignores.
    """

    words: list[str]
    unbuffered: bool
    environment: dict[str, str]
    folder: str
    descriptors: list[int]
    parent: int
    dies_with_parent: bool
    new_session: bool
    process_group: int
    ignored_signals: list[int]


@contextlib.contextmanager
def forks() -> Iterator[None]:
    """Use forks inside. The zygote starts with the first of them, and ends here or with this process.

    A process that is a fork itself has its zygote already.
    """
    global _zygote
    use_forks(_zygote)
    try:
        yield
    finally:
        _start_with(_fork_exec_fresh)
        if _zygote is not None:
            _zygote.close()
            _zygote = None


@contextlib.contextmanager
def fresh_interpreters() -> Iterator[None]:
    """Start fresh interpreters inside, which start fresh interpreters themselves."""
    before = _posixsubprocess.fork_exec
    _start_with(_fork_exec_fresh)
    try:
        yield
    finally:
        _start_with(before)


def use_forks(zygote: socket.socket | None) -> None:
    """Use forks of ``zygote`` from now on; None to start one when it is needed."""
    global _zygote
    _zygote = zygote
    _start_with(_fork_exec)


def _start_with(fork_exec: Any) -> None:
    """Make ``subprocess`` and ``multiprocessing`` start processes with ``fork_exec``."""
    subprocess._fork_exec = fork_exec  # type: ignore[attr-defined]
    _posixsubprocess.fork_exec = fork_exec


def connection() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection between a process and its zygote. They are not inherited by programs."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    moved = [socket.socket(fileno=fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, FREE_NUMBERS)) for end in ends]
    for end in ends:
        end.close()
    return moved[0], moved[1]


def _started_zygote() -> socket.socket:
    ours, theirs = connection()
    environment = {name: value for name, value in os.environ.items() if name not in _UNSET} | _FOR_ENGINES
    with theirs, fresh_interpreters():
        subprocess.Popen(
            [sys.executable, *_own_options(), "-m", "tests.helpers.zygote", str(theirs.fileno())], env=environment,
            cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    return ours


def _fork_exec(
    words: Sequence[str], executables: Any, close_fds: bool, keep: Sequence[int], cwd: str | None,
    environment: Sequence[bytes] | None, stdin: int, p2cwrite: int, c2pread: int, stdout: int, errread: int,
    stderr: int, errpipe_read: int, errpipe_write: int, restore_signals: bool, new_session: bool,
    process_group: int, *more: Any,
) -> int:  # fmt: skip
    """As ``_posixsubprocess.fork_exec``, but with a fork of the zygote if the process is the same."""
    global _zygote
    words = [os.fsdecode(word) for word in words]
    variables = os.environ if environment is None else dict(os.fsdecode(one).split("=", 1) for one in environment)
    prepare = next((one for one in more if callable(one)), None)
    program = program_of(words)
    if not program or not starts_alike(variables) or prepare not in (None, die_with_parent):
        return _fork_exec_fresh(  # type: ignore[no-any-return]
            words, executables, close_fds, keep, cwd, environment, stdin, p2cwrite, c2pread, stdout, errread, stderr,
            errpipe_read, errpipe_write, restore_signals, new_session, process_group, *more,
        )  # fmt: skip
    kept = [number for number in keep if number != errpipe_write]
    standard = [number if given < 0 else given for number, given in enumerate((stdin, stdout, stderr))]
    command = Command(
        words=program, unbuffered="-u" in words[: -len(program)] or bool(variables.get("PYTHONUNBUFFERED")),
        environment=dict(variables), folder=os.path.abspath(cwd or "."),  # noqa: PTH100
        descriptors=[0, 1, 2, *kept], parent=os.getpid(), dies_with_parent=prepare is not None,
        new_session=new_session, process_group=process_group,
        ignored_signals=[one for one in signal.valid_signals() if signal.getsignal(one) == signal.SIG_IGN],
    )  # fmt: skip
    with _lock:
        if _zygote is None:
            _zygote = _started_zygote()
        _adopt_orphans(True)  # the fork's own parent ends at once
        try:
            socket.send_fds(_zygote, [pickle.dumps(command)], [*standard, *kept])
            pid = _zygote.recv(MAX_BYTES)
            assert pid, "the zygote has ended; it printed why on the standard error of pytest's process"
            return int(pid)
        finally:
            _adopt_orphans(False)


def program_of(words: Sequence[str]) -> list[str]:
    """Script, module or program text with arguments; empty if this is not a command of an interpreter like this one."""
    rest = list(words[1:])
    while rest and rest[0] in ("-u", *_own_options()):
        rest = rest[1:]
    is_program = rest and (rest[0] in ("-c", "-m") or rest[0].endswith(".py"))
    return rest if words[0] == sys.executable and is_program else []


def _own_options() -> list[str]:
    """The options that this interpreter was started with."""
    return list(subprocess._args_from_interpreter_flags())  # type: ignore[attr-defined]


def starts_alike(environment: Mapping[str, str]) -> bool:
    names = {name for name in {*environment, *os.environ} if name.startswith(_READ_AT_START)} - _SET_BY_FORK
    return all(environment.get(name) == os.environ.get(name) for name in names)


def _adopt_orphans(yes: bool) -> None:
    """Make this process the parent of descendants whose parent ends, or no longer."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)
