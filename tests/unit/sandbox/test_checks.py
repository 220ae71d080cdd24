"""Tests for assert scripts, which pass only if they reach their end in their own process."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_ssd.sandbox.sandbox import Execution, Program, Sandbox
from tests.helpers.sandboxed import LIMITS

DOUBLE = "f = __program__.f\nassert f(2) == 4\nassert f(21) == 42"
GOOD = "def f(x):\n    return 2 * x"


def check(sandbox: Sandbox, source: str, *scripts: str, **changes: float) -> Execution:
    """Run scripts against a program, then check that the same container still runs the next program."""
    program = Program(source=source, form="checks")
    execution = sandbox.execute(program, scripts or [DOUBLE], dataclasses.replace(LIMITS, **changes))
    container = sandbox._process
    assert sandbox.execute(Program(source=GOOD, form="checks"), [DOUBLE], LIMITS).ending == "completed"
    assert sandbox._process is container, "the container was replaced"
    return execution


class TestValues:
    @pytest.mark.parametrize(
        "value",
        ["None", "True", "-1", "10**400", "0.5", "float('inf')", "'a\\nb'", "[1, [2]]", "(1, (2,), ())", "{1, 2}",
         "{(1, 2): {'a': [None]}}", "frozenset({1})", "b'ab'", "2j", "range(3)", "OrderedDict(a=1)", "deque([1])",
         "Counter('aab')", "'\\ud800'", "int"],
    )  # fmt: skip
    def test_results_keep_their_type(self, sandbox: Sandbox, value: str):
        script = f"assert __program__.f() == {value}\nassert __program__.f({value}) == {value}"
        assert check(sandbox, f"def f(x={value}): return x", script).ending == "completed"

    def test_a_tuple_is_not_a_list(self, sandbox: Sandbox):
        assert check(sandbox, "def f(): return [1]", "assert __program__.f() == (1,)").ending == "failed_check"

    def test_objects_are_passed_by_reference(self, sandbox: Sandbox):
        source = (
            "class Node:\n    def __init__(self, v): self.v, self.next = v, None\n"
            "def length(node): return 0 if node is None else 1 + length(node.next)"
        )
        script = "Node = __program__.Node\nn = Node(1)\nn.next = Node(2)\nassert __program__.length(n) == 2 == n.next.v"
        assert check(sandbox, source, script).ending == "completed"

    def test_iterators_are_consumed(self, sandbox: Sandbox):
        execution = check(sandbox, "def f(): return map(str, [1, 2])", "assert list(__program__.f()) == ['1', '2']")
        assert execution.ending == "completed"

    def test_an_expected_exception(self, sandbox: Sandbox):
        script = "try:\n    __program__.f(0)\nexcept ZeroDivisionError:\n    pass\nelse:\n    assert False"
        assert check(sandbox, "def f(x): return 1 / x", script).ending == "completed"
        assert check(sandbox, "def f(x): return x", script).ending == "failed_check"


class TestEndings:
    def test_a_failed_script_is_reported_with_its_line(self, sandbox: Sandbox):
        execution = check(sandbox, GOOD, "assert __program__.f(1) == 2", "x = 1\nassert __program__.f(x) == 3")
        assert (len(execution.outputs), execution.ending) == (1, "failed_check")
        assert execution.detail == "assert __program__.f(x) == 3"

    @pytest.mark.parametrize(
        ("source", "ending", "detail"),
        [
            ("def f(x) return x", "syntax_error", "SyntaxError"),
            ("1 / 0", "runtime_error", "ZeroDivisionError"),
            ("def f(x): return 1 / 0", "runtime_error", "ZeroDivisionError: division by zero"),
            ("def f(x): assert False, 'own'", "runtime_error", "AssertionError: own"),
            ("def g(x): return x", "runtime_error", "AttributeError"),
            ("def f(x):\n    while True: pass", "timeout", "0.5 s of CPU time"),
            ("import time\ndef f(x): time.sleep(100)", "starved", "wall time"),
            ("def f(x): return bytearray(1 << 40)", "memory", "MemoryError"),
            ("def f(x): return 'x' * (2 << 20)", "runtime_error", "more than 1048576 bytes"),
            ("def f(x): return None", "failed_check", "assert f(2) == 4"),
            ("def f(x): return f(x)", "runtime_error", "RecursionError"),
            ("import ctypes\ndef f(x): ctypes.string_at(0)", "runtime_error", "killed by signal 11"),
        ],
    )  # fmt: skip
    def test_endings_of_programs(self, sandbox: Sandbox, source: str, ending: str, detail: str):
        execution = check(sandbox, source, wall_seconds=1.0 if ending == "starved" else 60.0)
        assert (execution.ending, execution.outputs) == (ending, ())
        assert detail in execution.detail

    def test_a_script_that_cannot_run_is_not_the_programs_fault(self, sandbox: Sandbox):
        assert check(sandbox, GOOD, "__program__.f(lambda: 1)").ending == "broken_check"

    def test_the_time_limit_applies_to_each_script(self, sandbox: Sandbox):
        source = "import time\ndef f():\n    end = time.process_time() + 0.3\n    while time.process_time() < end: pass"
        execution = check(sandbox, source, *["__program__.f()"] * 4)
        assert execution.ending == "completed"
        assert all(0.2 < seconds < 0.5 for seconds in execution.cpu_seconds)


class TestAttacks:
    @pytest.mark.parametrize("exit_", ["sys.exit(0)", "os._exit(0)", "raise SystemExit", "os.close(3)", "quit()"])
    @pytest.mark.parametrize("where", ["{}", "def f(x):\n    {}", "import atexit\natexit.register(lambda: 0)\n{}"])
    def test_an_early_exit(self, sandbox: Sandbox, exit_: str, where: str):
        execution = check(sandbox, "import os, sys\n" + where.format(exit_))
        assert execution.ending == "runtime_error"
        assert execution.outputs == ()

    @pytest.mark.parametrize(
        "methods",
        ["__eq__ = lambda self, other: True", "__ne__ = lambda self, other: False\n    __sub__ = lambda self, o: 0",
         "__class__ = int\n    __eq__ = lambda self, other: True"],
    )  # fmt: skip
    @pytest.mark.parametrize("base", ["object", "int", "list", "dict", "float", "Fraction"])
    def test_an_equality_that_always_agrees(self, sandbox: Sandbox, base: str, methods: str):
        source = f"from fractions import Fraction\nclass A({base}):\n    {methods}\ndef f(x): return A()"
        assert check(sandbox, source).ending in ("failed_check", "runtime_error")

    def test_patching_the_comparison(self, sandbox: Sandbox):
        source = (
            "import builtins, sys, operator\nbuiltins.AssertionError = BaseException\nbuiltins.abs = lambda x: 0\n"
            "for name, module in list(sys.modules.items()):\n"
            "    for key in list(vars(module)) if 'megatron' in name else ():\n"
            "        if callable(getattr(module, key)) and key in ('run_checks', 'report_result', '_failure'):\n"
            "            setattr(module, key, lambda *a, **k: None)\n"
            "def f(x): return 0"
        )
        script = "assert abs(__program__.f(1) - 5) < 1e-6"
        assert check(sandbox, source, script).ending == "failed_check"

    def test_forged_results_and_messages(self, sandbox: Sandbox):
        line = "b'{\"value\": true}\\n'"
        for descriptor in (1, 3, 4):
            source = f"import os\ndef f(x):\n    os.write({descriptor}, {line} * 3)\n    return 0"
            assert check(sandbox, source).ending in ("failed_check", "runtime_error")

    @pytest.mark.parametrize("message", ['{"error": "broken_check", "detail": ""}', '{"ready": 1}', "[]", "no json"])
    def test_a_program_cannot_blame_the_checker(self, sandbox: Sandbox, message: str):
        source = f"import os, struct\ndata = {message!r}.encode()\nos.write(3, struct.pack('>I', len(data)) + data)"
        assert check(sandbox, source).ending == "runtime_error"

    def test_a_program_cannot_find_expected_values_in_its_objects(self, sandbox: Sandbox):
        thief = (
            "import gc\n"
            "def f(*arguments):\n"
            "    secret = ''.join(reversed('546372819'))\n"
            "    containers = [o for o in gc.get_objects() if isinstance(o, (dict, list, tuple))]\n"
            "    return int(secret) if any(secret in repr(o)[:100_000] for o in containers) else 0"
        )
        limits = {"cpu_seconds": 20.0, "memory_bytes": 1 << 30}
        assert check(sandbox, thief, "assert __program__.f() == 918273645", **limits).ending == "failed_check"
        assert check(sandbox, thief, "assert __program__.f('918273645') == 918273645", **limits).ending == "completed"

    def test_output_does_not_count(self, sandbox: Sandbox):
        assert check(sandbox, "print('{\"value\": true}')\nprint('ok')\ndef f(x): print(4); return None").detail

    def test_a_script_that_catches_everything_does_not_hide_an_exit(self, sandbox: Sandbox):
        script = "try:\n    __program__.f()\nexcept BaseException:\n    pass"
        assert check(sandbox, "import os\ndef f(): os._exit(0)", script).ending == "runtime_error"

    @pytest.mark.parametrize("source", ["while True:\n    os.fork()", "os.kill(os.getppid(), 9)", "os.kill(-1, 9)"])
    def test_other_processes_cannot_be_started_or_killed(self, sandbox: Sandbox, source: str):
        assert "PermissionError" in check(sandbox, f"import os\n{source}").detail

    def test_an_endless_message(self, sandbox: Sandbox):
        source = (
            "import os\ndef f(x):\n    os.write(3, b'\\xff\\xff\\xff\\xff')\n    while True: os.write(3, b'x' * 1000)"
        )
        assert check(sandbox, source).ending == "runtime_error"
