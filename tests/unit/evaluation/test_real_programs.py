"""Real programs with real tests, where public data lies beside the checkout: right ones pass, broken ones do not."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.evaluation.grading import Grader
from megatron_ssd.schema import Problem, TestCase
from tests.unit.evaluation.programs import sample

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
LEETCODE = DATA / "rllm_code" / "test_leetcode.json"


@pytest.mark.skipif(not LEETCODE.is_file(), reason=f"needs {LEETCODE}")
def test_leetcode_solutions(tmp_path: Path):
    problems, samples = [], []
    for index, row in enumerate(json.loads(LEETCODE.read_text())):
        problem = leetcode_problem(f"leetcode-{index}", row)
        if problem is not None:
            problems.append(problem)
            samples.append(sample(row["solutions"], problem=problem.id))
            samples.append(sample("class Solution:\n    pass", problem=problem.id, index=1))
    assert len(problems) > 180
    with Grader(problems, SandboxConfig()) as grader:
        verdicts = grader.grade(samples, tmp_path / "verdicts.jsonl")
    right, broken = verdicts[::2], verdicts[1::2]
    # LeetCode has this package; the sandbox has the standard library.
    assert {verdict.detail for verdict in right if not verdict.passed} <= {
        "ModuleNotFoundError: No module named 'sortedcontainers'"
    }
    assert sum(verdict.passed for verdict in right) >= len(right) - 1
    assert {verdict.status for verdict in broken} == {"runtime_error"}


def leetcode_problem(identity: str, row: dict[str, Any]) -> Problem | None:
    """The row's assertions as test cases; None where one is no plain call with literal values."""
    texts = row["tests"] if isinstance(row["tests"], dict) else ast.literal_eval(row["tests"])
    check = ast.parse(texts["functional"])
    tests = []
    for node in ast.walk(check):
        if not isinstance(node, ast.Assert):
            continue
        match node.test:
            case ast.Compare(left=ast.Call() as call, ops=[ast.Eq()], comparators=[expected]):
                values = [*call.args, *(keyword.value for keyword in call.keywords)]
            case _:
                return None
        try:
            lines = [json.dumps(ast.literal_eval(value)) for value in values]
            tests.append(TestCase(input="\n".join(lines), output=json.dumps(ast.literal_eval(expected))))
        except (ValueError, TypeError):
            return None
    call = check.body[-1].value  # type: ignore[attr-defined]
    return Problem(id=identity, source="leetcode", statement=row["problem"], form="function",
                   function_name=call.args[0].attr, starter_code="class Solution:", tests=tuple(tests))  # fmt: skip
