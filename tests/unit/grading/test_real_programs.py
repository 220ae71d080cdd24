"""Tests for grading with solutions and tests of public benchmarks; they are skipped without the data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.agreement_cases import leetcode_functions
from benchmarks.mutants import mutants
from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.grading.grade_file import program_of
from megatron_ssd.grading.pool import Grader, Submission
from megatron_ssd.problems.assert_scripts import read_assert_scripts
from megatron_ssd.schema import Problem, Verdict
from tests.helpers.benchmark_rows import rows_of
from tests.helpers.paths import DATA, HUMANEVAL, MBPP, needs
from tests.helpers.programs import sample

LEETCODE = DATA / "rllm_code" / "test_leetcode.json"
# LeetCode provides this package, and LiveCodeBench's checker this name.
NO_PACKAGE = "ModuleNotFoundError: No module named 'sortedcontainers'"
NO_NAME = "NameError: name 'ascii_lowercase' is not defined"
USUAL_IMPORTS = "".join(
    f"from {module} import *\n"
    for module in ("typing", "collections", "itertools", "functools", "heapq", "bisect", "math")
)


def humaneval() -> list[tuple[Problem, str]]:
    """Problems with their canonical solutions, each as a complete program."""
    pairs = zip(read_assert_scripts("humaneval", HUMANEVAL), rows_of("humaneval"), strict=True)
    return [(p, str(program_of("completion", row["canonical_solution"], p).program)) for p, row in pairs]


def mbpp() -> list[tuple[Problem, str]]:
    """Problems with their reference solutions."""
    return [
        (problem, row["code"]) for problem, row in zip(read_assert_scripts("mbpp", MBPP), rows_of("mbpp"), strict=True)
    ]


def grade(
    programs: list[tuple[Problem, str]],
    folder: Path,
    sandbox: SandboxConfig = SandboxConfig(),  # noqa: B008
) -> list[Verdict]:
    """A verdict for each (problem, program)."""
    counts: Counter[str] = Counter()
    submissions = []
    for problem, source in programs:
        submissions.append(Submission(problem_id=problem.id, sample_index=counts[problem.id], source=source))
        counts[problem.id] += 1
    with Grader((problem for problem, _ in programs), sandbox) as grader:
        return grader.grade_programs(submissions, folder / "verdicts.jsonl")


@pytest.fixture(scope="module")
def solutions() -> list[tuple[Problem, str]]:
    return humaneval()


@pytest.fixture(scope="module")
def humaneval_grader(solutions: list[tuple[Problem, str]]) -> Iterator[Grader]:
    with Grader((problem for problem, _ in solutions), SandboxConfig()) as shared:
        yield shared


def not_passed(verdicts: list[Verdict]) -> list[tuple[str, str, str]]:
    return [(verdict.problem_id, verdict.status, verdict.detail) for verdict in verdicts if not verdict.passed]


@needs(HUMANEVAL)
def test_humaneval_solutions(solutions: list[tuple[Problem, str]], humaneval_grader: Grader, tmp_path: Path):
    submissions = [Submission(problem_id=problem.id, sample_index=0, source=source) for problem, source in solutions]
    verdicts = humaneval_grader.grade_programs(submissions, tmp_path / "verdicts.jsonl")
    assert not_passed(verdicts) == []
    assert len(verdicts) == 164


@needs(MBPP)
def test_mbpp_solutions(tmp_path: Path):
    verdicts = grade(mbpp(), tmp_path)
    assert not_passed(verdicts) == []
    assert len(verdicts) == 974


def leetcode(head: str = "") -> list[tuple[Problem, str]]:
    """Problems with their reference solutions, each after ``head``."""
    rows = json.loads(LEETCODE.read_text())
    return [
        (problem, head + row["solutions"])
        for problem, row in zip(read_assert_scripts("leetcode", LEETCODE), rows, strict=True)
    ]


@needs(LEETCODE)
def test_leetcode_solutions_by_their_own_checks(tmp_path: Path):
    """One of the two hundred needs a package that the sandbox does not provide by default."""
    assert not_passed(grade(leetcode(), tmp_path / "default")) == [("127", "runtime_error", NO_PACKAGE)]
    verdicts = grade(leetcode(), tmp_path / "package", SandboxConfig(packages=("sortedcontainers",)))
    assert (not_passed(verdicts), len(verdicts)) == ([], 200)


@needs(LEETCODE)
def test_leetcode_solutions_without_livecodebenchs_prelude(tmp_path: Path):
    """LeetCode imports the usual names for its programs. Four programs need one that is not among them."""
    plain = SandboxConfig(packages=("sortedcontainers",), prelude="none")
    verdicts = grade(leetcode(USUAL_IMPORTS), tmp_path / "imports", plain)
    assert not_passed(verdicts) == [(number, "runtime_error", NO_NAME) for number in ("128", "155", "156", "172")]
    verdicts = grade(leetcode(), tmp_path / "plain", plain)
    assert sum(verdict.passed for verdict in verdicts) == 32
    assert all(detail.startswith("NameError") for _, _, detail in not_passed(verdicts))


def kill_rates(programs: list[tuple[Problem, str]], folder: Path) -> dict[str, tuple[int, int]]:
    """Kind of mutant -> (number that failed, number of mutants)."""
    made = [(problem, kind, source) for problem, right in programs for kind, source in mutants(right)]
    verdicts = grade([(problem, source) for problem, _, source in made], folder, SandboxConfig(cpu_seconds=1.0))
    assert not [verdict for verdict in verdicts if verdict.status == "infrastructure_error"]
    failed = Counter(kind for (_, kind, _), verdict in zip(made, verdicts, strict=True) if not verdict.passed)
    return {kind: (failed[kind], count) for kind, count in Counter(kind for _, kind, _ in made).items()}


def check_rates(rates: dict[str, tuple[int, int]], *, operator: float, off_by_one: float) -> None:
    """Check the shares of mutants that fail.

    A wrong return value must always fail. The other bounds allow for mutants that compute the same result.
    """
    assert rates["return"][0] == rates["return"][1]
    for kind, bound in (("operator", operator), ("off_by_one", off_by_one)):
        failed, count = rates[kind]
        assert failed >= bound * count, rates


@needs(HUMANEVAL)
def test_mutated_solutions_of_some_problems_fail(tmp_path: Path):
    check_rates(kill_rates(humaneval()[::8], tmp_path), operator=0.8, off_by_one=0.8)


@pytest.mark.slow
@needs(HUMANEVAL)
@needs(MBPP)
def test_mutated_solutions_fail(tmp_path: Path):
    check_rates(kill_rates(humaneval(), tmp_path / "humaneval"), operator=0.91, off_by_one=0.89)
    check_rates(kill_rates(mbpp(), tmp_path / "mbpp"), operator=0.88, off_by_one=0.78)


@needs(HUMANEVAL)
@pytest.mark.parametrize(
    ("problem_id", "right", "wrong"),
    [
        ("HumanEval/0", "if distance < threshold", "if distance > threshold"),
        ("HumanEval/2", "number % 1.0", "number % 2.0"),
        ("HumanEval/3", "balance < 0", "balance <= 0"),
        ("HumanEval/13", "return a", "return b"),
        ("HumanEval/23", "len(string)", "len(string) + 1"),
        ("HumanEval/53", "x + y", "x - y"),
    ],
)
def test_a_small_mistake_is_a_wrong_answer(
    solutions: list[tuple[Problem, str]],
    humaneval_grader: Grader,
    tmp_path: Path,
    problem_id: str,
    right: str,
    wrong: str,
):
    (source,) = [source for problem, source in solutions if problem.id == problem_id]
    assert right in source
    submission = Submission(problem_id=problem_id, sample_index=0, source=source.replace(right, wrong))
    (verdict,) = humaneval_grader.grade_programs([submission], tmp_path / "verdicts.jsonl")
    assert verdict.status == "wrong_answer"


@needs(LEETCODE)
def test_leetcode_solutions_by_their_values(tmp_path: Path):
    problems, samples = [], []
    for problem, solution in leetcode_functions(LEETCODE):
        problems.append(problem)
        samples.append(sample(solution, problem=problem.id))
        samples.append(sample("class Solution:\n    pass", problem=problem.id, index=1))
    assert len(problems) > 180
    with Grader(problems, SandboxConfig(packages=("sortedcontainers",))) as grader:
        verdicts = grader.grade_programs(map(grader.submission, samples), tmp_path / "verdicts.jsonl")
    assert not_passed(verdicts[::2]) == []
    assert {verdict.status for verdict in verdicts[1::2]} == {"runtime_error"}
