"""The fork server that runs inside the sandbox. Standard library only; started by path, never imported there.

It reads requests from standard input and answers on standard output: frames of a 4-byte big-endian length and JSON.
A request holds one program and its inputs. For each, a child is forked that sets its own limits, gives up the right to
make processes, and runs the program: all inputs of a ``function`` program one after another, or a ``stdin`` program as
``__main__`` on its one input. The server watches from outside, kills, and reports bare facts; it never compiles,
imports or unpickles anything that a program made, and it holds no expected output. The host judges what the facts mean.

Invariants:
- One child at a time, and no process outlives it: a seccomp filter refuses new processes (threads are allowed), other
  program images, and every system call that touches another process. RLIMIT_NPROC would not do: it does not bind root,
  and it counts what the same user runs elsewhere.
- Limits are watched by the server through the child's CPU clock; nothing a program does to its own timers or signal
  handlers matters. RLIMIT_CPU is the back-stop.
- A program's output lies in a memory file of bounded size, its results go through a pipe that is read up to the same
  bound.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import gc
import importlib
import json
import os
import platform
import random
import resource
import select
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any, BinaryIO, NoReturn

# LiveCodeBench's judge offers these without import; so does this one. A builtin is never hidden.
PREIMPORTED = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools",
    "functools", "operator", "io", "sys", "json", "typing", "time", "os",
)  # fmt: skip
STAR_IMPORTED = tuple(name for name in PREIMPORTED if name not in ("os", "time"))

RECURSION_LIMIT = 50_000  # as LiveCodeBench's judge sets it
STACK_BYTES = 100 << 20  # within the 128 MiB that Linux keeps free below every stack
OPEN_FILES = 32
RESULTS_FD = 3
_DETAIL_CHARACTERS, _SMALLEST_WAIT_MS = 300, 5

_WARM_UP_PROGRAMS = (
    "def f(xs):\n    return sum(x * 2 for x in xs if x > 1) + len([y for y in xs])\n",
    "class A:\n    def f(self):\n        return sorted({1: 'a'}, key=lambda x: f'{x}')\nA().f()\n",
    "1 / 0",
    "x = (",
)

_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_CLONE_THREAD = 0x00010000
# System call numbers that are refused: making processes, changing the program image, reaching into other processes,
# their memory, priority and processors included.
_REFUSED = {
    "x86_64": (57, 58, 59, 322, 101, 310, 311, 62, 129, 200, 234, 297, 424, 434, 438, 272, 308, 425,
               141, 142, 144, 203, 251, 256, 279, 314),
    "aarch64": (221, 281, 117, 270, 271, 129, 138, 130, 131, 240, 424, 434, 438, 97, 268, 425,
                30, 118, 119, 122, 140, 238, 239, 274),
}  # fmt: skip
_CLONE, _CLONE3 = {"x86_64": 56, "aarch64": 220}, 435
_PRLIMIT = {"x86_64": 302, "aarch64": 261}  # refused for any process but the caller, whom it names 0
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


class Seccomp:
    """The system-call filter of a program, built once and entered by every child."""

    def __init__(self) -> None:
        machine = platform.machine()
        if machine not in _REFUSED:
            raise RuntimeError(f"no system-call filter for {machine}; the sandbox knows {', '.join(_REFUSED)}")
        code = self._program(machine)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._code = ctypes.create_string_buffer(code, len(code))
        # struct sock_fprog: the number of instructions, then their address.
        self._header = ctypes.create_string_buffer(struct.pack("HP", len(code) // 8, ctypes.addressof(self._code)))

    @staticmethod
    def _program(machine: str) -> bytes:
        """Classic BPF over struct seccomp_data: number at offset 0, architecture at 4, first argument at 16."""
        load, jump_equal, jump_set, jump_at_least, give = 0x20, 0x15, 0x45, 0x35, 0x06
        allow, kill = 0x7FFF0000, 0x80000000
        refuse, unknown = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
        code = [
            (load, 0, 0, 4),
            (jump_equal, 1, 0, _AUDIT_ARCH[machine]),
            (give, 0, 0, kill),  # a system call of another architecture has other numbers
            (load, 0, 0, 0),
            (jump_at_least, 0, 1, 0x40000000),
            (give, 0, 0, kill),  # x32's numbers
            (jump_equal, 0, 1, _CLONE3),
            (give, 0, 0, unknown),  # glibc then falls back on clone, whose flags a filter can read
        ]
        for number, passes in (
            (_CLONE[machine], (jump_set, 1, 0, _CLONE_THREAD)),
            (_PRLIMIT[machine], (jump_equal, 1, 0, 0)),
        ):
            code += [(jump_equal, 0, 4, number), (load, 0, 0, 16), passes, (give, 0, 0, refuse), (give, 0, 0, allow)]
        for number in _REFUSED[machine]:
            code += [(jump_equal, 0, 1, number), (give, 0, 0, refuse)]
        code.append((give, 0, 0, allow))
        return b"".join(struct.pack("HBBI", *instruction) for instruction in code)

    def prctl(self, option: int, *arguments: Any) -> None:
        """``prctl(2)``; raises ``OSError``."""
        padded = [a if isinstance(a, ctypes.Array) else ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
        if self._libc.prctl(option, *padded) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"prctl {option}: {os.strerror(number)}")

    def enter(self) -> None:
        """From here on this process is filtered, for good."""
        self.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, self._header)


def serve() -> None:
    """Answer requests until standard input ends."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    seccomp = Seccomp()
    seccomp.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    seccomp.prctl(_PR_SET_DUMPABLE, 0)  # no child may trace this process or read its memory
    # Process 1 of a namespace is deaf to every signal from inside, but for those it handles; Python handles this one.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _preimport()
    sys.setrecursionlimit(RECURSION_LIMIT)
    sys.set_int_max_str_digits(0)  # judges print long integers
    _warm_up()
    gc.collect()
    gc.freeze()  # children then do not copy pages only to mark objects
    _send(replies, {"ready": True, "pid": os.getpid(), "python": platform.python_version()})
    while (request := _receive(requests)) is not None:
        _send(replies, _run(request, seccomp, null))


def _preimport() -> None:
    """Make the names known to every program, beside the builtins: a copy for each program would cost it a millisecond.

    ``threading`` is not among them and not imported by this server: its work after a fork doubles a fork's cost.
    """
    modules: dict[str, ModuleType] = {name: importlib.import_module(name) for name in PREIMPORTED}
    builtin = vars(importlib.import_module("builtins"))
    names: dict[str, Any] = {}
    for name in STAR_IMPORTED:
        module = modules[name]
        public = getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")])
        names.update({n: getattr(module, n) for n in public if n not in builtin})
    builtin.update({**names, **modules})


def _warm_up() -> None:
    """Do in the server what every program would otherwise do for the first time: fill caches, specialise byte code.

    Each page that a child writes to is copied, and such copies are most of a short program's cost; this saves a third.
    """
    request = {"form": "function", "function_name": "f", "class_name": None, "inputs": ["[1, 2]"] * 10}
    for source in (*_WARM_UP_PROGRAMS, *_WARM_UP_PROGRAMS) * 5:
        _execute({**request, "source": source}, json.dumps)
        _execute({**request, "source": source, "form": "stdin"}, json.dumps)


def _run(request: dict[str, Any], seccomp: Seccomp, null: int) -> dict[str, Any]:
    """Run one program in a child and say what happened: results, output, exit status, CPU seconds."""
    stdin = stdout = null
    results_read, results_write = os.pipe()
    if request["form"] == "stdin":
        stdin, stdout = os.memfd_create("stdin"), os.memfd_create("stdout")
        with open(stdin, "wb", closefd=False) as file:
            file.write(request["inputs"][0].encode("utf-8", "surrogatepass"))
        os.lseek(stdin, 0, os.SEEK_SET)
    if (pid := os.fork()) == 0:
        _child(request, seccomp, (stdin, stdout, null, results_write))
    os.close(results_write)
    try:
        facts = _watch(pid, results_read, request)
        if request["form"] == "stdin":
            size = min(os.fstat(stdout).st_size, request["output_bytes"])
            facts["stdout"] = os.pread(stdout, size, 0).decode("utf-8", "replace")
        return facts
    finally:
        os.close(results_read)
        for descriptor in {stdin, stdout} - {null}:
            os.close(descriptor)


def _watch(pid: int, results_read: int, request: dict[str, Any]) -> dict[str, Any]:
    """Read the child's results until it ends or must be killed; reap it."""
    process_clock = (~pid << 3) | 2  # the kernel's name for the CPU clock of process ``pid``
    handle = os.pidfd_open(pid)
    poller = select.poll()
    poller.register(results_read, select.POLLIN)
    poller.register(handle, select.POLLIN)
    results = bytearray()
    num_results = len(request["inputs"]) if request["form"] == "function" else 0
    cpu_marks = [0.0]  # CPU seconds of the child as each result came in
    wall_mark, killed = time.monotonic(), ""
    try:
        while not killed:
            cpu_left = cpu_marks[-1] + request["cpu_seconds"] - time.clock_gettime(process_clock)
            wall_left = wall_mark + request["wall_seconds"] - time.monotonic()
            if cpu_left <= 0 or wall_left <= 0:
                killed = "cpu" if cpu_left <= 0 else "wall"
                break
            ready = dict(poller.poll(max(_SMALLEST_WAIT_MS, 1000 * min(cpu_left, wall_left))))
            if results_read in ready:
                chunk = os.read(results_read, 1 << 16)
                if not chunk:
                    poller.unregister(results_read)  # closed; how it ends is still to come
                results += chunk
                # A limit starts anew with each input's result, and only so often, whatever the program sends.
                for _ in range(min(chunk.count(b"\n"), num_results + 1 - len(cpu_marks))):
                    cpu_marks.append(time.clock_gettime(process_clock))
                    wall_mark = time.monotonic()
                if len(results) > request["output_bytes"]:
                    killed = "output"
            elif handle in ready:
                break
        if killed:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(handle)
    _, status, usage = os.wait4(pid, 0)
    return {
        "results": bytes(results[: request["output_bytes"]]).decode("utf-8", "replace"),
        "exit": os.waitstatus_to_exitcode(status),
        "killed": killed,
        "cpu_total": usage.ru_utime + usage.ru_stime,
        "cpu_marks": cpu_marks[1:],
        "stdout": "",
    }


def _child(request: dict[str, Any], seccomp: Seccomp, files: tuple[int, int, int, int]) -> NoReturn:
    """The life of one program. Never returns."""
    status = 1
    try:
        # The server's own two channels hold 3 and 4, so no source is among the targets 0 to 3.
        for target, source in enumerate(files):
            os.dup2(source, target)
        os.closerange(RESULTS_FD + 1, 64)
        _limit(request)
        seccomp.enter()
        random.seed(0)  # the same program, the same verdict
        status = _execute(request, _report)
    finally:
        os._exit(status)


def _limit(request: dict[str, Any]) -> None:
    whole_run = int(request["cpu_seconds"] * len(request["inputs"])) + 2
    for what, limit in (
        (resource.RLIMIT_CPU, whole_run),
        (resource.RLIMIT_AS, request["memory_bytes"]),
        (resource.RLIMIT_FSIZE, request["output_bytes"]),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (limit, limit))
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    stack = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, hard))


def _execute(request: dict[str, Any], report: Callable[[dict[str, Any]], object]) -> int:
    """Compile and run the program; ``report`` gets its results and its error. Returns the exit status."""
    is_main = request["form"] == "stdin"
    module = ModuleType("__main__" if is_main else "solution")
    sys.modules[module.__name__] = module
    stage = "syntax"
    try:
        code = compile(request["source"], "solution.py", "exec", dont_inherit=True)
        stage = "runtime"
        status = _run_main(code, module) if is_main else _run_function(code, module, request, report)
    except MemoryError as error:
        report({"error": "memory" if stage == "runtime" else stage, "detail": _describe(error)})
        return 1
    except BaseException as error:  # noqa: BLE001 - whatever a program raises is a finding about the program
        report({"error": stage, "detail": _describe(error)})
        return 1
    return status


def _run_main(code: CodeType, module: ModuleType) -> int:
    """Run as a script is run, with what the interpreter does at its end: join threads, exit handlers, flush."""
    status = 0
    try:
        exec(code, module.__dict__)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    threading: Any = sys.modules.get("threading")
    for thread in threading.enumerate() if threading else ():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()
    return status


def _run_function(
    code: CodeType, module: ModuleType, request: dict[str, Any], report: Callable[[dict[str, Any]], object]
) -> int:
    """Call the function, or the method of a new object, on every input; each result is reported as it comes."""
    exec(code, module.__dict__)
    name, owner = request["function_name"], request["class_name"]
    for text in request["inputs"]:
        arguments = [json.loads(line) for line in text.split("\n") if line.strip()]
        holder = getattr(module, owner)() if owner else module
        report({"value": getattr(holder, name)(*arguments)})
    return 0


def _report(row: dict[str, Any]) -> None:
    _write_all(RESULTS_FD, json.dumps(row).encode() + b"\n")


def _describe(error: BaseException) -> str:
    """One line: the exception's type and message."""
    return " ".join("".join(traceback.format_exception_only(error)).split())[:_DETAIL_CHARACTERS]


def _send(descriptor: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    _write_all(descriptor, struct.pack(">I", len(data)) + data)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _receive(requests: BinaryIO) -> dict[str, Any] | None:
    header = requests.read(4)
    return json.loads(requests.read(struct.unpack(">I", header)[0])) if header else None


if __name__ == "__main__":
    serve()
