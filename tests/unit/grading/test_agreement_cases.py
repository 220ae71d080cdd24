"""Tests for the verdicts of the programs on which two checkers are compared."""

from __future__ import annotations

from pathlib import Path

from benchmarks.agreement_cases import FUNCTION_KINDS, STDIN_KINDS, WHY, function_programs, stdin_programs
from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.grading.pool import Grader, Submission
from megatron_ssd.schema import Problem, TestCase

STDIN = Problem(
    id="s", source="x", statement="", form="stdin",
    tests=(TestCase(input="1\n2\n", output="3 4\nyes no\n"), TestCase(input="5", output="6\n7")),
)  # fmt: skip
FUNCTION = Problem(
    id="f", source="x", statement="", form="function", function_name="f", starter_code="class Solution:",
    tests=(TestCase(input="1\n[2]", output="[[3], 4]"), TestCase(input="5\n[]", output="6")),
)  # fmt: skip
SOLUTION = "class Solution:\n    def f(self, a, b):\n        return [[3], 4] if a == 1 else 6"


def passing(problem: Problem, programs: list[tuple[str, str]], folder: Path) -> set[str]:
    """The kinds of those (kind, program) that pass."""
    submissions = [Submission(problem_id=problem.id, sample_index=i, source=s) for i, (_, s) in enumerate(programs)]
    with Grader([problem], SandboxConfig()) as grader:
        verdicts = grader.grade_programs(submissions, folder / "verdicts.jsonl")
    return {kind for (kind, _), verdict in zip(programs, verdicts, strict=True) if verdict.passed}


def test_verdicts_of_stdin_programs(tmp_path: Path):
    programs = list(stdin_programs(STDIN))
    assert {kind for kind, _ in programs} == STDIN_KINDS.keys()
    assert STDIN_KINDS.keys() - passing(STDIN, programs, tmp_path) == {
        "two spaces", "last character", "one line more", "one line", "upper case", "nothing", "raises at the end",
        "name without import",
    }  # fmt: skip


def test_verdicts_of_methods_and_mutants(tmp_path: Path):
    programs = list(function_programs(FUNCTION, SOLUTION))
    kinds = {kind for kind, _ in programs}
    assert kinds == {*FUNCTION_KINDS, "solution", "mutant: operator", "mutant: off_by_one", "mutant: return"}
    assert kinds - passing(FUNCTION, programs, tmp_path) == {
        "inner tuples", "almost", "text", "None", "NumPy array", "equals everything", "exits", "mutant: operator",
        "mutant: off_by_one", "mutant: return",
    }  # fmt: skip


def test_every_explained_kind_exists():
    assert WHY.keys() <= STDIN_KINDS.keys() | FUNCTION_KINDS.keys()
