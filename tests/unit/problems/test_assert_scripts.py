"""Tests how rows of HumanEval, MBPP and LeetCode become problems, and the error messages for invalid rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.errors import UserError
from megatron_ssd.problems.humaneval import program_from_completion, read_humaneval
from megatron_ssd.problems.leetcode import read_leetcode
from megatron_ssd.problems.mbpp import read_mbpp
from megatron_ssd.schema import Problem
from tests.helpers.jsonl import write_jsonl

HUMANEVAL = {
    "task_id": "t/0", "entry_point": "inc", "prompt": "import math\n\ndef inc(x):\n    \"\"\"One more.\"\"\"\n",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n",
}  # fmt: skip
MBPP = {
    "task_id": 7, "text": "Count.", "code": "import sys\nclass Node:\n    pass\ndef sum(x):\n    return 1",
    "test_setup_code": "root = Node()", "test_list": ["assert sum(root) == 1", "assert len([0]) < sys.maxsize"],
}  # fmt: skip


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    return write_jsonl(folder / "rows.jsonl", rows)


def namespace_of(problem: Problem, test: int, program: dict[str, Any]) -> dict[str, Any]:
    """The variables of a script after it was run in this process, with the names that ``program`` defines."""
    names: dict[str, Any] = {"__program__": type("Program", (), {k: staticmethod(v) for k, v in program.items()})}
    exec(problem.tests[test].input, names)
    return names


def test_a_humaneval_script_checks_the_function_with_the_names_of_the_prompt(tmp_path: Path):
    (problem,) = read_humaneval(written(tmp_path, HUMANEVAL))
    assert (problem.id, problem.form, problem.function_name) == ("t/0", "checks", "inc")
    assert "math" in namespace_of(problem, 0, {"inc": lambda x: x + 1})
    with pytest.raises(AssertionError):
        namespace_of(problem, 0, {"inc": lambda x: x})


def test_a_prompt_may_end_with_the_def_line(tmp_path: Path):
    (problem,) = read_humaneval(written(tmp_path, {**HUMANEVAL, "prompt": "def inc(x):\n"}))
    namespace_of(problem, 0, {"inc": lambda x: x + 1})


def test_gzipped_rows_are_read(tmp_path: Path):
    assert len(read_humaneval(write_jsonl(tmp_path / "rows.jsonl.gz", [HUMANEVAL]))) == 1


@pytest.mark.parametrize(
    ("completion", "is_complete"),
    [
        ("    return x + 1", False),
        ("def inc(x):\n    return x + 1", True),
        ("import os\n\ndef inc(x): return x", True),
        ("    def inc(x): return x\n    return inc(x)", False),
        ("def other(x):\n    return x", False),
        ("class A:\n    def inc(x): return x", False),
        ("def inc(x", False),
        ("\0", False),
    ],
)
def test_a_completion_that_defines_the_entry_point_is_the_complete_program(
    tmp_path: Path, completion: str, is_complete: bool
):
    (problem,) = read_humaneval(written(tmp_path, HUMANEVAL))
    assert program_from_completion(problem, completion) == (
        completion if is_complete else HUMANEVAL["prompt"] + completion
    )


def test_an_mbpp_script_gets_the_names_of_its_reference_from_the_program(tmp_path: Path):
    (problem,) = read_mbpp(written(tmp_path, MBPP))
    assert (problem.id, problem.form, len(problem.tests)) == ("7", "checks", 2)
    names = namespace_of(problem, 0, {"sum": lambda root: 1, "Node": object})
    assert type(names["root"]) is object
    assert "sum" in names, "a builtin that the reference defines comes from the program"
    assert "len" not in names
    import sys

    assert namespace_of(problem, 1, {"sum": lambda root: 1, "Node": object})["sys"] is sys


def test_rows_of_sanitised_mbpp_are_read(tmp_path: Path):
    row = {
        "task_id": 8, "prompt": "p", "code": "def f(x): return x", "test_imports": ["import math"],
        "test_list": ["assert math.isclose(f(1), 1)"],
    }  # fmt: skip
    (problem,) = read_mbpp(written(tmp_path, row))
    namespace_of(problem, 0, {"f": lambda x: 1.0})


@pytest.mark.parametrize("as_text", [json.dumps, repr, dict])
def test_rows_of_leetcode_are_read(tmp_path: Path, as_text: Callable[[Any], Any]):
    tests = {"functional": "def check(candidate):\n    assert candidate(x=1) == 2\ncheck(Solution().inc)"}
    (problem,) = read_leetcode(written(tmp_path, {"problem": "p", "tests": as_text(tests)}))
    namespace_of(problem, 0, {"Solution": lambda: type("S", (), {"inc": lambda self, x: x + 1})()})


@pytest.mark.parametrize(
    ("read", "rows", "message"),
    [
        (read_humaneval, [HUMANEVAL, HUMANEVAL], "'t/0': is repeated"),
        (read_humaneval, [], "rows.jsonl: is empty"),
        (read_humaneval, [{**HUMANEVAL, "test": "def check("}], "rows.jsonl:1: contains text that is not Python"),
        (read_humaneval, [{**HUMANEVAL, "prompt": 3}], "prompt = '3': must be text"),
        (read_humaneval, [MBPP], "no column prompt"),
        (read_mbpp, [HUMANEVAL], "no column"),
        (read_mbpp, [{**MBPP, "test_list": []}], "test_list: must be a list of assertions"),
        (read_mbpp, [{**MBPP, "code": "def f("}], "rows.jsonl:1: contains text that is not Python"),
        (read_leetcode, [{"problem": "p", "tests": "x"}], "rows.jsonl:1: tests: must contain functional"),
    ],
)  # fmt: skip
def test_broken_files_are_named(tmp_path: Path, read: Callable[[Path], Any], rows: list[dict[str, Any]], message: str):
    with pytest.raises(UserError, match=message):
        read(written(tmp_path, *rows))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="is not a file"):
        read_humaneval(tmp_path / "none.jsonl")
