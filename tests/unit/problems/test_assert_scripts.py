"""Tests how rows of HumanEval, MBPP and LeetCode become problems, and the error messages for invalid rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.errors import UserError
from megatron_ssd.problems.assert_scripts import read_assert_scripts
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


def run(problem: Problem, program: str) -> None:
    """Run a program with the scripts of a problem in this process, one after another in the same names."""
    exec("\n".join([program, *(test.input for test in problem.tests)]), {})


def test_a_humaneval_script_calls_check_behind_the_program(tmp_path: Path):
    (problem,) = read_assert_scripts("humaneval", written(tmp_path, HUMANEVAL))
    assert (problem.id, problem.form, problem.function_name) == ("t/0", "checks", "inc")
    run(problem, problem.starter_code + "    return math.floor(x + 1.5)")
    with pytest.raises(AssertionError):
        run(problem, problem.starter_code + "    return x")


def test_gzipped_rows_are_read(tmp_path: Path):
    assert len(read_assert_scripts("humaneval", write_jsonl(tmp_path / "rows.jsonl.gz", [HUMANEVAL]))) == 1


def test_the_set_up_of_mbpp_runs_once_behind_the_program(tmp_path: Path):
    (problem,) = read_assert_scripts("mbpp", written(tmp_path, MBPP))
    assert (problem.id, problem.form, len(problem.tests)) == ("7", "checks", 2)
    assert problem.function_name in ("sum", "Node")
    run(problem, MBPP["code"])
    with pytest.raises(NameError):
        run(problem, MBPP["code"].replace("Node", "Other"))


def test_rows_of_sanitised_mbpp_are_read(tmp_path: Path):
    row = {
        "task_id": 8, "prompt": "p", "code": "def f(x): return x", "test_imports": ["import math"],
        "test_list": ["assert math.isclose(f(1), 1)"],
    }  # fmt: skip
    (problem,) = read_assert_scripts("mbpp", written(tmp_path, row))
    run(problem, row["code"])


@pytest.mark.parametrize("as_text", [json.dumps, repr, dict])
def test_rows_of_leetcode_are_read(tmp_path: Path, as_text: Callable[[Any], Any]):
    tests = {"functional": "def check(candidate):\n    assert candidate(x=1) == 2\ncheck(Solution().inc)"}
    (problem,) = read_assert_scripts("leetcode", written(tmp_path, {"problem": "p", "tests": as_text(tests)}))
    run(problem, "class Solution:\n    def inc(self, x): return x + 1")


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("humaneval", [HUMANEVAL, HUMANEVAL], "'t/0': is repeated"),
        ("humaneval", [], "rows.jsonl: is empty"),
        ("humaneval", [{**HUMANEVAL, "test": "def check("}], "rows.jsonl:1: contains text that is not Python"),
        ("humaneval", [{**HUMANEVAL, "prompt": 3}], "prompt = '3': must be text"),
        ("humaneval", [MBPP], "no column prompt"),
        ("mbpp", [HUMANEVAL], "no column"),
        ("mbpp", [{**MBPP, "test_list": []}], r"test_list = '\[\]': must be a list of assertions"),
        ("mbpp", [{**MBPP, "code": "def f("}], "rows.jsonl:1: contains text that is not Python"),
        ("leetcode", [{"problem": "p", "tests": "x"}], "rows.jsonl:1: tests = 'x': must contain functional"),
    ],
)  # fmt: skip
def test_broken_files_are_named(tmp_path: Path, name: str, rows: list[dict[str, Any]], message: str):
    with pytest.raises(UserError, match=message):
        read_assert_scripts(name, written(tmp_path, *rows))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="is not a file"):
        read_assert_scripts("humaneval", tmp_path / "none.jsonl")
