"""Tests for HumanEval+ and MBPP+ in both layouts of evalplus, graded in the sandbox."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.artifacts.jsonl import read_jsonl
from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.config.tools import GradeConfig
from megatron_ssd.errors import UserError
from megatron_ssd.grading.checker import Checker
from megatron_ssd.grading.grade_file import run_grade
from megatron_ssd.problems.assert_scripts import read_assert_scripts
from megatron_ssd.sandbox.sandbox import Sandbox
from megatron_ssd.schema import Problem
from tests.helpers.jsonl import write_jsonl

HUB_HEAD = """import numpy as np
from math import inf

def is_floats(x) -> bool:
    return isinstance(x, float) or isinstance(x, (list, tuple)) and all(isinstance(i, float) for i in x)

def assertion(out, exp, atol):
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if out != exp and atol != 0:
        np.testing.assert_allclose(out, exp, atol=atol)
    else:
        assert out == exp
"""
MEAN = {
    "task_id": "HumanEval/900", "entry_point": "mean", "atol": 0, "contract": "\n    assert xs # $_CONTRACT_$\n",
    "prompt": 'def mean(xs):\n    """Their mean."""\n', "canonical_solution": "    return sum(xs) / len(xs)\n",
    "base_input": [[[1, 2]]], "plus_input": [[[0.1, 0.2, 0.3]], [[3, 1, 2.5]], [[7]]],
}  # fmt: skip
MBPP = {
    "task_id": 2, "prompt": "Shared elements of two tuples.", "test_imports": [], "test_list": [],
    "code": "import math\ndef shared(a, b):\n    return tuple(set(a) & set(b))\n",
    "test": HUB_HEAD + "inputs = [[(3, 4), (4, 5)], [(1,), ()]]\nresults = [(4,), ()]\n"
    "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(shared(*inp), exp, 0)\n",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of references for this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def checker() -> Iterator[Checker]:
    with Checker(SandboxConfig(stop_at_first_failure=False)) as shared:
        yield shared


def checked(checker: Checker, problem: Problem, *sources: str) -> list[tuple[str, str]]:
    """(status, letters of the tests) of each program."""
    return [(found.status, found.by_test) for found in (checker.check(problem, source).verdict for source in sources)]


def test_inputs_are_compared_with_the_canonical_solution(checker: Checker, tmp_path: Path):
    (problem,) = read_assert_scripts("humaneval_plus", write_jsonl(tmp_path / "HumanEvalPlus.jsonl.gz", [MEAN]))
    head = "def mean(xs):\n"
    assert checked(
        checker,
        problem,
        head + "    return sum(xs) / len(xs)",
        head + "    import math\n    return math.fsum(xs) / len(xs)",  # equal up to rounding
        head + "    return sum(xs) // len(xs)",
        head + "    return 1.5",
        head + "    import numpy\n    return numpy.mean(xs)",
        head + "    xs.sort()\n    return sum(xs) / len(xs)",  # changes only its own copy
        head + "    class A(float):\n        __eq__ = lambda s, o: True\n    return A()",  # as evalplus does
        "import builtins\nsize = len\nbuiltins.len = None\ndef mean(xs): return sum(xs) / size(xs)",
        "def mean(xs): exit()",
        "import sys\nsys.stdout.close()\ndef mean(xs):\n    print(xs)\n    return sum(xs) / len(xs)",
        head + "    print(1)\n    return sum(xs) / len(xs) if sys.stdout.getvalue() == '1\\n' else 0\nimport sys",
        *(f"g = lambda n: n and g(n - 1)\n{head}    g({n})\n    return sum(xs) / len(xs)" for n in (966, 967)),
    ) == [
        ("passed", ".."), ("passed", ".."), ("wrong_answer", "WW"), ("wrong_answer", ".W"), ("passed", ".."),
        ("passed", ".."), ("passed", ".."), ("passed", ".."), ("runtime_error", "RR"),
        ("passed", ".."), ("passed", ".."), ("passed", ".."), ("runtime_error", "RR"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("expected", "returned", "atol", "status"),
    [
        ("[0.1, 0.2]", "[0.1, 0.2 + 1e-9]", 0, "passed"),
        ("[0.1, 0.2]", "(0.1, 0.2 + 1e-9)", 0, "wrong_answer"),
        ("[0.1, 0.2]", "[0.1]", 0, "wrong_answer"),
        ("2.0", "2", 0, "passed"),
        ("2.0000001", "2", 0, "wrong_answer"),
        ("[1, 0.5]", "[1, 0.5 + 1e-9]", 0, "wrong_answer"),
        ("[1, 0.5]", "[1, 0.5 + 1e-9]", 1e-4, "passed"),
        ("'a'", "'b'", 0, "wrong_answer"),
        ("[]", "()", 0, "wrong_answer"),
    ],
)
def test_results_are_compared_as_evalplus_does(
    checker: Checker, tmp_path: Path, expected: str, returned: str, atol: float, status: str
):
    row = {**MEAN, "canonical_solution": f"    return {expected}\n", "atol": atol, "plus_input": []}
    (problem,) = read_assert_scripts("humaneval_plus", write_jsonl(tmp_path / "a.jsonl", [row]))
    assert checked(checker, problem, f"def mean(xs): return {returned}")[0][0] == status


def test_a_root_is_checked_by_the_value_of_its_polynomial(checker: Checker, tmp_path: Path):
    row = {**MEAN, "entry_point": "find_zero", "prompt": "def find_zero(xs):\n", "atol": 1e-4,
           "canonical_solution": "    return 1.0\n", "base_input": [[[-1, 0, 1]]], "plus_input": []}  # fmt: skip
    (problem,) = read_assert_scripts("humaneval_plus", write_jsonl(tmp_path / "a.jsonl", [row]))
    programs = [f"def find_zero(xs): return {value}" for value in ("-1.0", "1.00001", "0.9")]
    assert [status for status, _ in checked(checker, problem, *programs)] == ["passed", "passed", "wrong_answer"]
    # evalplus passes these attacks too: its comparison calls the functions, and its frame has the expected values.
    head = "import builtins, math, sys\ndef find_zero(xs):\n    "
    attacks = ["math.pow = lambda *a: 0", "builtins.abs = lambda *a: 0", "builtins.sum = lambda *a: 0", "xs[:] = [0]",
               "return sys._getframe(1).f_locals['wanted']"]  # fmt: skip
    assert (
        checked(checker, problem, *(f"{head}{attack}\n    return 0.5" for attack in attacks)) == [("passed", "..")] * 5
    )


def test_scripts_of_mbpp_plus_on_the_hub(checker: Checker, tmp_path: Path):
    (problem,) = read_assert_scripts("mbpp_plus", write_jsonl(tmp_path / "mbppplus.jsonl", [MBPP]))
    assert problem.id == "2"
    good = MBPP["code"]
    programs = [good, "def shared(a, b): return a", "def other(): pass", "exit()"]
    assert [status for status, _ in checked(checker, problem, *programs)] == [
        "passed", "wrong_answer", "runtime_error", "runtime_error",
    ]  # fmt: skip


def problem_with(folder: Path, **changes: Any) -> Problem:
    (problem,) = read_assert_scripts("humaneval_plus", write_jsonl(folder / "a.jsonl", [{**MEAN, **changes}]))
    return problem


def test_an_expected_float_makes_all_later_results_approximate(checker: Checker, tmp_path: Path):
    rows = {"canonical_solution": "    return xs[0]\n", "plus_input": []}
    integers_last = problem_with(tmp_path, base_input=[[[0.5]], [[[1, 0.5]]]], **rows)
    integers_first = problem_with(tmp_path, base_input=[[[[1, 0.5]]], [[0.5]]], **rows)
    near = "def mean(xs): return [1, 0.5 + 1e-9] if isinstance(xs[0], list) else xs[0]"
    assert checked(checker, integers_last, near) == [("passed", "..")]
    assert checked(checker, integers_first, near) == [("wrong_answer", "W.")]


@pytest.mark.parametrize(
    "attack",
    ["numpy.allclose = lambda *a, **k: True", "builtins.zip = enumerate = lambda *a, **k: ()",
     "for o in gc.get_objects():\n    if isinstance(o, list) and [[0.1, 0.2, 0.3]] in o: o.clear()",
     "for o in gc.get_objects():\n    if isinstance(o, zip | enumerate): list(o)",
     "os.write(3, b'\\n' * 20 + b'0' * 32)\nos._exit(0)"],
)  # fmt: skip
@pytest.mark.parametrize("where", ["{}\ndef mean(xs): return 1.4", "def mean(xs):\n    {}\n    return 1.4"])
def test_attacks_on_the_comparison(checker: Checker, tmp_path: Path, attack: str, where: str):
    head = "import builtins, gc, numpy, os\n"
    source = head + where.format(attack.replace("\n", "\n    ") if "def" in where[:4] else attack)
    (result,) = checked(checker, problem_with(tmp_path), source)
    assert result[0] in ("wrong_answer", "runtime_error")


def test_the_canonical_solution_has_time_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each input has at least four times the canonical solution's seconds, and ``cpu_seconds``."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spin = "    import time\n    end = time.process_time() + xs[0]\n    while time.process_time() < end: pass\n"
    problem = problem_with(
        tmp_path, canonical_solution=f"{spin}    return 1\n", base_input=[[[0.1]]] * 3, plus_input=[]
    )
    head = "def mean(xs):\n"
    slower = head + spin.replace("xs[0]", "0.3") + "    return 1"
    with Checker(SandboxConfig(cpu_seconds=0.1)) as short:
        assert short.check(problem, head + spin + "    return 1", alone=True).verdict.status == "passed"
        assert short.check(problem, slower, alone=True).verdict.status == "passed"
        late = short.check(problem, slower.replace("0.3", "1"), alone=True).verdict
        assert (late.status, late.by_test) == ("timeout", "T")


def test_a_reference_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[Path] = []
    original = Sandbox.make_reference
    monkeypatch.setattr(Sandbox, "make_reference", lambda self, *a: (made.append(a[-1]), original(self, *a))[1])
    for _ in range(2):
        with Checker(SandboxConfig()) as fresh:
            assert (
                fresh.check(problem_with(tmp_path), MEAN["prompt"] + MEAN["canonical_solution"]).verdict.status
                == "passed"
            )
    assert len(made) == 2, "one for each test"


@pytest.mark.parametrize("row", [
    {**MEAN, "canonical_solution": "    return 1 / 0\n"},
    {**MEAN, "canonical_solution": "  )"},
    {**{k: MEAN[k] for k in ("task_id", "prompt", "entry_point", "canonical_solution")},
     "test": "def check(candidate):\n    assert abs(candidate([1, 2]) - 2) <= 1e-4\n"},
])  # fmt: skip
def test_a_problem_whose_canonical_solution_fails_is_flawed(
    tmp_path: Path, row: dict[str, Any], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    good = {**row, "task_id": "good", "canonical_solution": MEAN["canonical_solution"], "test": "def check(f): f([1])"}
    samples = [{"task_id": id_, "completion": "    return sum(xs) / len(xs)"} for id_ in (row["task_id"], "good")]
    paths = {"problems": write_jsonl(tmp_path / "p.jsonl", [row, good]),
             "samples": write_jsonl(tmp_path / "s.jsonl", samples), "out": tmp_path / "out"}  # fmt: skip
    run_grade(GradeConfig(format="humaneval_plus", **{key: str(path) for key, path in paths.items()}))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["flawed"]) == [row["task_id"]]
    assert summary["pass_at_k"]["all"]["1"] == {"value": 1.0, "low": 1.0, "high": 1.0, "num_problems": 1}
    for text in (capsys.readouterr().out, caplog.text):
        assert f"{row['task_id']}: " in text


@pytest.mark.parametrize(
    ("entry_point", "task_id", "canonical", "inputs", "right", "wrong"),
    [
        ("f", "Mbpp/116", "tuple(x)", [[[1, 2]]], "x", "list(x)"),
        ("f", "Mbpp/63", "type(x[0])(x[0])", [[[[1, 2]]]], "(1, 2)", "[1, 2]"),
        ("f", "Mbpp/115", "x", [[[[1, 1], [], 3]]], "[{1}, {}, {}]", "[[1], [], 3]"),
        ("f", "Mbpp/252", "x", [["1+2j"]], "1 + 2j", "1 - 2j"),
        ("f", "Mbpp/580", "x", [[[1, [2, [3]]]]], "(1, (2, (3,)))", "(1, [2, [3]])"),
        ("f", "Mbpp/278", "x", [[[1, [2]]]], "(1, (2,))", "[1, [2]]"),
        ("f", "Mbpp/722", "x", [[{"a": [1]}]], "{'a': (1,)}", "{'a': [1]}"),
        ("f", "Mbpp/9", "x", [[[1]]], "[1]", "(1,)"),
        ("similar_elements", "Mbpp/2", "[1, 2]", [[[1]]], "(2, 1, 1)", "[1]"),
        ("sum_div", "Mbpp/295", "7", [[1]], "0", "1"),
        ("check_str", "Mbpp/1", "object()", [[1]], "'x'", "None"),
        ("check_str", "Mbpp/1", "None", [[1]], "False", "True"),
        ("are_equivalent", "Mbpp/164", "True", [[1]], "None", "1 / 0"),
        ("surface_Area", "Mbpp/581", "0", [[3]], "0", "1"),
        ("digit_distance_nums", "Mbpp/558", "0", [[3]], "0", "1"),
    ],
)  # fmt: skip
def test_mbpp_plus_converts_inputs_and_compares_as_evalplus_does(
    checker: Checker,
    tmp_path: Path,
    entry_point: str,
    task_id: str,
    canonical: str,
    inputs: Any,
    right: str,
    wrong: str,
):
    head = f"def {entry_point}(x):\n"
    row = {"task_id": task_id, "prompt": '"""Text."""\n', "entry_point": entry_point, "atol": 0,
           "canonical_solution": f"{head}    return {canonical}\n", "base_input": inputs, "plus_input": {}}  # fmt: skip
    (problem,) = read_assert_scripts("mbpp_plus", write_jsonl(tmp_path / "a.jsonl", [row]))
    passed, failed = checked(checker, problem, f"{head}    return {right}", f"{head}    return {wrong}")
    assert passed == ("passed", "..")
    assert failed[0] in ("wrong_answer", "runtime_error")


def test_grading_through_the_tool(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bodies = ("    return sum(xs) / len(xs)", "    return 1.5")
    completions = [{"task_id": "HumanEval/900", "completion": body} for body in bodies]
    samples = write_jsonl(tmp_path / "samples.jsonl", completions)
    run_grade(GradeConfig(problems=str(write_jsonl(tmp_path / "p.jsonl", [MEAN])), format="humaneval_plus",
                          samples=str(samples), out=str(tmp_path / "out")))  # fmt: skip
    verdicts = read_jsonl(tmp_path / "out" / "verdicts.jsonl")
    assert [(each["status"], each["tests_passed"], each["tests_total"]) for each in verdicts] == [
        ("passed", 2, 2), ("wrong_answer", 1, 2),
    ]  # fmt: skip
    assert "pass@1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**MEAN, "plus_input": [1]}, r"1: plus_input = .*: must be a list of lists"),
        ({**MEAN, "atol": "0"}, "atol = '0'"),
        ({**MEAN, "prompt": ""}, "prompt = ''"),
        ({"task_id": "a"}, "has no column prompt, entry_point, test"),
    ],
)
def test_invalid_humaneval_plus_rows_are_errors(tmp_path: Path, row: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        read_assert_scripts("humaneval_plus", write_jsonl(tmp_path / "a.jsonl", [row]))


def test_invalid_mbpp_plus_rows_are_errors(tmp_path: Path):
    with pytest.raises(UserError, match="calls no function of the reference code"):
        read_assert_scripts("mbpp_plus", write_jsonl(tmp_path / "a.jsonl", [{**MBPP, "test": "assert True"}]))
    with pytest.raises(UserError, match="has no column test"):
        read_assert_scripts(
            "mbpp_plus", write_jsonl(tmp_path / "b.jsonl", [{k: v for k, v in MBPP.items() if k != "test"}])
        )


def test_the_plus_formats_need_numpy():
    with pytest.raises(UserError, match="must name numpy"):
        GradeConfig(problems="a", format="mbpp_plus", samples="b", out="c", packages=())


def test_rows_of_the_hub_with_checks_of_their_own_are_read(checker: Checker, tmp_path: Path):
    texts = {"prompt": 'def f(x):\n    """One more."""\n', "entry_point": "f"}
    rows = [
        {**texts, "task_id": "a", "test": f"{HUB_HEAD}\ndef check(f):\n    assertion(f(1), 2, 0)"},
        {**texts, "task_id": "b", "test": "def check(candidate):\n    assert abs(candidate(1) - 2) <= 1e-4\n"},
    ]
    for problem in read_assert_scripts("humaneval_plus", write_jsonl(tmp_path / "a.jsonl", rows)):
        assert checked(checker, problem, "def f(x): return x + 1", "def f(x): return x") == [
            ("passed", "."), ("wrong_answer", "W"),
        ]  # fmt: skip
