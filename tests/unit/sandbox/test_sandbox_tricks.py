"""Tests for the sandbox with less common attacks, one per test."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from msgspec.structs import replace

from megatron_ssd.artifacts.jsonl import read_jsonl
from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.grading.compare import stdout_difference, value_difference
from megatron_ssd.grading.pool import Grader
from megatron_ssd.sandbox.sandbox import Sandbox
from megatron_ssd.schema import TestCase
from tests.helpers.programs import function_problem, sample, stdin_problem
from tests.helpers.sandboxed import call, run


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader([function_problem(), stdin_problem()], SandboxConfig(workers=1)) as shared:
        yield shared


SYSCALL = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nis_arm = os.uname().machine == 'aarch64'\n"


class TestLeftovers:
    """Nothing outlives a program."""

    @pytest.mark.parametrize(
        "source",
        [
            "os.symlink('/usr', '/tmp/x')",
            "os.mkdir('/tmp/x')",
            "os.mkfifo('/tmp/x')",
            "os.link('/usr/bin/env', '/tmp/x')",
            "os.rename('/usr/bin/env', '/usr/bin/x')",
            "os.truncate('/usr/bin/env', 0)",
            "os.utime('/usr/bin/env')",
            "os.setxattr('/tmp', 'user.x', b'1')",
        ],
    )
    def test_the_file_system_cannot_be_changed(self, sandbox: Sandbox, source: str):
        assert "Error" in run(sandbox, f"import os\n{source}").detail

    @pytest.mark.parametrize(
        ("name", "numbers", "arguments"),
        [
            ("shmget", (29, 194), "1, 1 << 30, 0o1600"),
            ("semget", (64, 190), "1, 1, 0o1600"),
            ("msgget", (68, 186), "1, 0o1600"),
            ("mq_open", (240, 180), "b'x', 0o102, 0o600, 0"),
            ("add_key", (248, 217), "b'user', b'x', b'secret', 6, -4"),
            ("keyctl", (250, 219), "0, -4, 1"),
            ("bpf", (321, 280), "0, 0, 0"),
            ("perf_event_open", (298, 241), "0, 0, -1, -1, 0"),
            ("userfaultfd", (323, 282), "0"),
        ],
    )
    def test_system_calls_that_store_data_in_the_kernel_are_refused(
        self, sandbox: Sandbox, name: str, numbers: tuple[int, int], arguments: str
    ):
        source = f"print(libc.syscall({numbers}[is_arm], {arguments}), ctypes.get_errno())"
        assert run(sandbox, SYSCALL + source).outputs == ("-1 1\n",), name

    def test_threads_do_not_outlive_their_program(self, sandbox: Sandbox):
        start = "threading.Thread(target=spin, daemon=True).start()"
        source = f"import os, threading\ndef spin():\n    while True: pass\n{start}\nprint(1)"
        assert run(sandbox, source, cpu_seconds=5.0).outputs == ("1\n",)
        assert sandbox._process is not None
        processes = psutil.Process(sandbox._process.pid).children(recursive=True)
        assert len(processes) == 1, "a process besides the server is left"

    def test_a_main_thread_that_exits_before_its_thread(self, sandbox: Sandbox):
        source = "import threading\ndef spin():\n    while True: pass\nthreading.Thread(target=spin).start()\n"
        leave = "libc.syscall((60, 93)[is_arm], 0)"  # exit of this thread, not of the process
        assert run(sandbox, SYSCALL + source + leave, wall_seconds=30.0).ending in ("timeout", "starved")

    def test_core_dumps_are_disabled(self, sandbox: Sandbox):
        source = "print(libc.prctl(4, 1, 0, 0, 0), libc.prctl(3, 0, 0, 0, 0))"  # PR_SET_DUMPABLE, PR_GET_DUMPABLE
        assert run(sandbox, SYSCALL + source).outputs == ("-1 0\n",)
        assert run(sandbox, "import resource\nprint(resource.getrlimit(resource.RLIMIT_CORE))").outputs == ("(0, 0)\n",)

    def test_the_name_of_the_machine_is_hidden(self, sandbox: Sandbox):
        assert run(sandbox, "import os, socket\nprint(os.uname().nodename)").outputs == ("sandbox\n",)

    def test_a_huge_sparse_file(self, sandbox: Sandbox):
        execution = run(sandbox, "import os\nos.ftruncate(os.memfd_create('x'), 1 << 50)")
        assert execution.detail in ("OSError: [Errno 27] File too large", "killed by signal 25")


class TestReach:
    """A program cannot reach other processes or the expected values."""

    def test_signals_to_the_owner_of_a_descriptor(self, sandbox: Sandbox):
        """The kernel sends these signals. Process 1 of a namespace ignores them."""
        source = (
            "import fcntl, os, signal, socket\n"
            "for owner in (1, os.getppid(), -1):\n"
            "    for number in (0, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP):\n"
            "        a, b = socket.socketpair()\n"
            "        try:\n"
            "            fcntl.fcntl(a, fcntl.F_SETOWN, owner)\n"
            "            fcntl.fcntl(a, 10, number)\n"  # F_SETSIG
            "            fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC)\n"
            "            b.send(b'x')\n"
            "        except OSError:\n            pass\n"
        )
        run(sandbox, "import signal\nfor n in range(1, 32):\n    n in (9, 19) or signal.signal(n, 1)\n" + source)

    def test_every_signal_blocked(self, sandbox: Sandbox):
        source = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass"
        assert run(sandbox, source).ending == "timeout"

    def test_proc_and_sys_do_not_exist(self, sandbox: Sandbox):
        """Only the names of standard input are there."""
        source = (
            "import os\nprint([p for p in ('/sys', '/run', '/var', '/home', '/boot') if os.path.exists(p)],\n"
            "      [file for _, _, files in os.walk('/proc') for file in files], os.listdir('/proc'))"
        )
        assert run(sandbox, source).outputs == ("[] ['0'] ['self']\n",)

    def test_a_program_cannot_find_expected_values_in_objects_or_frames(self, sandbox: Sandbox, tmp_path: Path):
        thief = (
            "import gc, sys\n"
            "def f(x):\n"
            "    frame, seen = sys._getframe(), []\n"
            "    while frame is not None:\n"
            "        seen += [repr(frame.f_locals)]\n        frame = frame.f_back\n"
            "    seen += [repr(o)[:10**6] for o in gc.get_objects() if isinstance(o, (dict, list, tuple))]\n"
            "    return 2 * x if any(str({} * x) in text for text in seen) else None"
        )
        test = TestCase(input="271828182845904523", output="543656365691809046")
        problem = replace(function_problem(), tests=(test,))
        thieves = [sample(thief.format(2)), sample(thief.format(1), index=1)]
        with Grader([problem], SandboxConfig(cpu_seconds=60.0, workers=1)) as grader:
            verdicts = grader.grade_programs(map(grader.submission, thieves), tmp_path / "verdicts.jsonl")
        # The second program searches for the input, which it finds.
        assert [verdict.status for verdict in verdicts] == ["wrong_answer", "passed"]

    def test_each_program_has_its_own_standard_input(self, sandbox: Sandbox):
        changes = ("ftruncate(0, 0)", "write(0, b'changed')", "open('/dev/stdin', os.O_WRONLY)", "fchmod(0, 0o777)",
                   "unlink('/dev/stdin')", "chmod('/dev/stdin', 0)")  # fmt: skip
        for change in changes:
            assert "Error" in run(sandbox, f"import os\nos.{change}", "12\n").detail, change
        assert run(sandbox, "import os\nos.lseek(0, 0, 2)", "12\n").ending == "completed"
        assert run(sandbox, "print(input())", "12\n").outputs == ("12\n",)

    def test_faulthandler_cannot_write_an_output(self, sandbox: Sandbox):
        source = "import faulthandler, ctypes\nfaulthandler.enable(file=1)\nctypes.string_at(0)"
        execution = run(sandbox, source)
        assert (execution.ending, execution.outputs) == ("runtime_error", ())


class TestHostileValues:
    """Results that are made to mislead the host."""

    @pytest.mark.parametrize(
        "body",
        [
            "class A(int):\n    def __add__(self, o): return 4\n    __int__ = __index__ = lambda self: 4",
            "class A(int):\n    def __repr__(self): return '4'\n    __str__ = __repr__",
            "class A(list):\n    def __iter__(self): return iter([4])\n    def __len__(self): return 1",
            "class A(dict):\n    def items(self): return [('value', 4)]\n    __iter__ = lambda self: iter('x')",
            "class A(float):\n    __eq__ = lambda s, o: True\n    __hash__ = float.__hash__",
            "class A(str):\n    def __getitem__(self, i): return '4'",
            "class A:\n    __class__ = int\n    def __reduce__(self): return (exit, ())",
            "class A:\n    def __reduce__(self): return (__import__('os')._exit, (0,))",
            "class A(type):\n    __eq__ = lambda s, o: True\n    __hash__ = type.__hash__",
            "import sys, types\nsys.modules['numpy'] = types.SimpleNamespace(generic=object)\n"
            "class A:\n    def item(self): return 5",
            "import json, sys\njson.dumps = lambda *a, **k: '4'\nsys.modules.clear()\nA = list",
            "import builtins\nfor n in ('isinstance', 'type', 'any'): setattr(builtins, n, lambda *a: True)\nA = list",
        ],
    )
    def test_an_object_of_a_hostile_class_is_not_the_correct_answer(self, sandbox: Sandbox, body: str):
        arguments = "'A', (), {}" if "type):" in body else ""
        execution = call(sandbox, f"{body}\ndef f(x):\n    return A({arguments})", ["2"])
        assert all(value_difference(output, "4") is not None for output in execution.outputs)
        assert call(sandbox, "def f(x): return x", ["5"]).outputs == ("5",)

    @pytest.mark.parametrize("text", ["'\\ud800'", "'\\x00'", "'\\u202e\\x1b[31m'", "'\\n\\r\\u2028'"])
    @pytest.mark.parametrize("statement", ["raise Exception({})", "return {}", "return [{{{}: 1}}]"])
    def test_any_text_can_be_written_to_a_verdict(self, grader: Grader, tmp_path: Path, text: str, statement: str):
        program = f"def f(x):\n    {statement.format(text)}"
        (verdict,) = grader.grade_programs(map(grader.submission, [sample(program)]), tmp_path / "verdicts.jsonl")
        assert verdict.status in ("runtime_error", "wrong_answer")
        (record,) = read_jsonl(tmp_path / "verdicts.jsonl")
        assert record["detail"] == verdict.detail
        assert verdict.detail.isprintable()
        verdict.detail.encode("utf-8")

    def test_printed_bytes_that_are_not_text(self, grader: Grader, tmp_path: Path):
        program = "import sys\nsys.stdout.buffer.write(bytes(range(256)) * 3)"
        (verdict,) = grader.grade_programs(
            map(grader.submission, [sample(program, problem="sum")]), tmp_path / "verdicts.jsonl"
        )
        assert verdict.status == "wrong_answer"
        verdict.detail.encode("utf-8")

    def test_a_long_forged_error_is_shortened(self, sandbox: Sandbox):
        message = 'b\'{"error": "x", "detail": "\' + b\'A\' * 500000 + b\'"}\\n\''
        execution = call(sandbox, f"import os\ndef f(x):\n    os.write(3, {message})\n    os._exit(1)", ["1"])
        assert execution.ending == "runtime_error"
        assert len(execution.detail) <= 300

    def test_an_integer_of_a_million_digits(self, sandbox: Sandbox):
        execution = call(sandbox, "def f(x): return 10 ** 900000", ["1"], cpu_seconds=1.0, wall_seconds=60.0)
        assert all(value_difference(output, "4") is not None for output in execution.outputs)


class TestCostsOfTheHost:
    """The host compares what a program writes without limits, so comparing must be cheap for any text."""

    SIZE = 4_000_000

    @pytest.mark.parametrize(
        "value",
        [
            '{"set": [' + ",".join(str(n * ((1 << 61) - 1)) for n in range(150_000)) + "]}",
            '{"dict": [' + ",".join(f"[{n * ((1 << 61) - 1)}, 0]" for n in range(100_000)) + "]}",
            '[{"frozenset": [' + ",".join(str(n * ((1 << 61) - 1)) for n in range(150_000)) + "]}]",
            "[" * 1_000_000,
            "[" + "[]," * 1_000_000 + "[]]",
            '{"Decimal": "1e999999999999"}',
            '{"Fraction": [1, ' + "9" * 1_000_000 + "]}",
            "9" * 2_000_000,
            '{"range": [0, 1000000000000, 1]}',
            '{"bytes": [1000000000000]}',
        ],
        ids=["set", "dict", "nested", "depth", "lists", "exponent", "fraction", "digits", "range", "bytes"],
    )
    def test_a_large_or_misleading_value(self, value: str):
        assert value_difference(value, "[1, 2]") is not None
        assert value_difference(value, '{"a": [1]}', tolerance=1e-6) is not None

    @pytest.mark.parametrize("text", ["1\n" * SIZE, "1 " * SIZE, "\n" * SIZE + "1", "9" * SIZE])
    def test_a_large_output(self, text: str):
        tracemalloc.start()
        try:
            assert stdout_difference(text, "1 2\n3") is not None
            assert stdout_difference(text, "1 2", tolerance=1e-6) is not None
            assert tracemalloc.get_traced_memory()[1] < 6 * self.SIZE, "it was split into words or lines"
        finally:
            tracemalloc.stop()

    def test_large_correct_values_are_accepted(self):
        rows = [[float(n), 10**22] for n in range(20_000)]
        assert value_difference(json.dumps({"dict": [["a", {"tuple": rows}]]}), json.dumps({"a": rows})) is not None
        assert value_difference(json.dumps({"dict": [["a", rows]]}), json.dumps({"a": rows})) is None
