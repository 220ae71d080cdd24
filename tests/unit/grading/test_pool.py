"""Tests for the grading of programs by a pool of sandboxes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.errors import UserError
from megatron_ssd.grading import pool
from megatron_ssd.grading.checker import Checker
from megatron_ssd.grading.pool import Grader, Submission, read_verdicts
from megatron_ssd.sandbox.execution import Execution
from megatron_ssd.sandbox.sandbox import Limits, Program, Sandbox, SandboxBrokenError
from megatron_ssd.schema import Problem, TestCase, Verdict
from tests.helpers.executables import write_executable
from tests.helpers.programs import function_problem, sample, stdin_problem
from tests.helpers.sandboxed import Executions, record_executions

CONFIG = SandboxConfig(cpu_seconds=0.4, memory_mib=512, output_mib=1, workers=2)
PROBLEMS = [function_problem(), stdin_problem()]
OTHERS = [
    replace(function_problem("same"), tests=(TestCase(input="0", output="5"),)),
    replace(function_problem("method"), starter_code="class Solution:\n    def f(self, x: int) -> int:"),
]  # fmt: skip
GOOD = "def f(x):\n    return 2 * x"


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader([*PROBLEMS, *OTHERS], CONFIG) as shared:
        yield shared


@pytest.fixture
def executions(monkeypatch: pytest.MonkeyPatch) -> Executions:
    return record_executions(monkeypatch)


def grade_one(grader: Grader, path: Path, source: str, **where: str) -> Verdict:
    (verdict,) = grader.grade_programs(map(grader.submission, [sample(source, **where)]), path / "verdicts.jsonl")  # type: ignore[arg-type]
    return verdict


def test_a_timeout_of_the_first_run_names_its_limit(grader: Grader, tmp_path: Path) -> None:
    verdict = grade_one(grader, tmp_path, "def f(x):\n    while True: pass")
    assert verdict.detail == "more than 0.8 s of CPU time (2 times its limit, as in every first run)"


@pytest.mark.parametrize(
    ("source", "status", "passed", "failed"),
    [
        (GOOD, "passed", 3, None),
        ("class Solution:\n    def f(self, x): return 2 * x", "passed", 3, None),
        ("class Other:\n    def f(self, x): return 2 * x", "runtime_error", 0, 0),
        ("def f(x): return 2 * x if x < 3 else 0", "wrong_answer", 2, 2),
        ("def f(x): return 2 * x // (x - 2)", "wrong_answer", 0, 0),
        ("def f(x): return 2 * x if x < 2 else 1 / 0", "runtime_error", 1, 1),
        ("def f(x):\n    while True: pass", "timeout", 0, 0),
        ("def f(x): return bytearray(1 << 40)", "memory", 0, 0),
        ("def f(x) return x", "syntax_error", 0, 0),
        ("import sys\nsys.exit(0)", "runtime_error", 0, 0),
    ],
)
def test_function_programs(grader: Grader, tmp_path: Path, source: str, status: str, passed: int, failed: int | None):
    verdict = grade_one(grader, tmp_path, source)
    assert (verdict.status, verdict.tests_passed, verdict.failed_test) == (status, passed, failed), verdict.detail
    assert verdict.tests_total == 3


@pytest.mark.parametrize(
    ("source", "status", "passed"),
    [
        ("print(sum(map(int, input().split())))", "passed", 3),
        ("import sys\nprint(sum(map(int, input().split())))\nsys.exit(0)", "passed", 3),
        ("a, b = map(int, input().split())\nprint(a + b if a < 2 else 0)", "wrong_answer", 2),
        ("print(sum(map(int, input().split())))\n1 / 0", "runtime_error", 0),
        ("import os\nos.close(1)", "wrong_answer", 0),
        ("while True: print(1)", "runtime_error", 0),
    ],
)
def test_stdin_programs(grader: Grader, tmp_path: Path, source: str, status: str, passed: int):
    verdict = grade_one(grader, tmp_path, source, problem="sum")
    assert (verdict.status, verdict.tests_passed) == (status, passed), verdict.detail


@pytest.fixture(scope="module")
def thorough() -> Iterator[Grader]:
    checks = Problem(id="checks", source="test", statement="", form="checks",
                     tests=tuple(TestCase(input=f"assert f({x}) == {2 * x}", output="")
                                 for x in range(1, 5)))  # fmt: skip
    config = dataclasses.replace(CONFIG, stop_at_first_failure=False)
    problems = [function_problem(tests=4), stdin_problem(tests=4), checks]
    with Grader(problems, config) as shared:
        yield shared


class TestEveryTest:
    """With ``stop_at_first_failure=False`` each test has its own letter, whatever the result of earlier tests is."""

    @pytest.mark.parametrize("problem", ["double", "checks"])
    @pytest.mark.parametrize(
        ("source", "by_test"),
        [
            (GOOD, "...."),
            ("def f(x): return 0 if x == 2 else 2 * x", ".W.."),
            ("def f(x): return 2 * x // (x != 3)", "..R."),
            ("def f(x): return bytearray(1 << 40) if x == 4 else 2 * x", "...M"),
            ("def f(x): os._exit(0)", "RRRR"),
            ("def f(x) return x", "S"),
        ],
    )
    def test_functions_and_checks(self, thorough: Grader, tmp_path: Path, problem: str, source: str, by_test: str):
        verdict = grade_one(thorough, tmp_path, source, problem=problem)
        assert (verdict.by_test, verdict.tests_passed) == (by_test, by_test.count(".")), verdict.detail
        assert verdict.failed_test == (None if by_test == "...." else len(by_test) - len(by_test.lstrip(".")))

    @pytest.mark.parametrize(("problem", "by_test"), [("double", "T..."), ("checks", "TTTT")])
    def test_checks_share_one_limit(self, thorough: Grader, tmp_path: Path, problem: str, by_test: str):
        source = "def f(x):\n    while x == 1: pass\n    return 2 * x"
        assert grade_one(thorough, tmp_path, source, problem=problem).by_test == by_test

    def test_stdin_programs(self, thorough: Grader, tmp_path: Path):
        source = "a, b = map(int, input().split())\nprint(a + b if a % 2 else 0 * 1 // (a - 2))"
        verdict = grade_one(thorough, tmp_path, source, problem="sum")
        assert verdict.by_test == "W.R."
        assert verdict.status == "wrong_answer"


def test_programs_are_read_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A window is read only after the verdicts of the previous window are on disk."""
    monkeypatch.setattr(pool, "WINDOW", 3)
    path = tmp_path / "verdicts.jsonl"

    def programs() -> Iterator[Submission]:
        for index in range(7):
            lines = path.read_bytes().count(b"\n") if path.exists() else 0
            assert lines >= index // 3 * 3
            yield Submission(problem_id="double", sample_index=index, source=f"{GOOD} + {index}")

    with Grader(PROBLEMS, CONFIG) as grader:
        verdicts = grader.grade_programs(programs(), path)
    assert [verdict.passed for verdict in verdicts] == [True] + [False] * 6


def test_a_response_without_code_is_not_run(grader: Grader, tmp_path: Path, executions: Executions):
    (verdict,) = grader.grade_programs(
        map(grader.submission, [sample(GOOD, fenced=False)]), tmp_path / "verdicts.jsonl"
    )
    assert verdict.status == "no_code"
    assert executions == []


def test_a_method_is_called_only_if_the_program_has_a_class(grader: Grader, tmp_path: Path):
    method = "class Solution:\n    def f(self, x): return 2 * x"
    assert grade_one(grader, tmp_path, method, problem="method").passed
    bare = grade_one(grader, tmp_path / "bare", "def f(x): return 2 * x", problem="method")
    assert bare.passed, "LiveCodeBench's checker accepts a function"


def test_expected_outputs_do_not_enter_the_sandbox(tmp_path: Path):
    secret = 918_273_645_546_372
    problem = replace(function_problem(), tests=(TestCase(input="1", output=str(secret)),))
    thief = (
        "import gc, sys\n"
        "def f(x):\n"
        "    texts = [o for o in gc.get_objects() if isinstance(o, (dict, list, tuple))]\n"
        "    return next((v for o in texts for v in (o.values() if isinstance(o, dict) else o)\n"
        f"                 if '{str(secret)[:5]}' + '{str(secret)[5:]}' in str(v)[:100_000]), None)"
    )
    with Grader([problem], SandboxConfig(workers=1)) as grader:
        assert grade_one(grader, tmp_path, thief).status in ("wrong_answer", "runtime_error")


def test_resuming_grades_no_program_again(tmp_path: Path, executions: Executions):
    path = tmp_path / "verdicts.jsonl"
    samples = [sample(f"def f(x):\n    return {n} * x", index=n) for n in range(6)]
    with Grader(PROBLEMS, CONFIG) as grader:
        first = grader.grade_programs(map(grader.submission, samples[:4]), path)
    before = path.read_bytes()
    path.write_bytes(before + b'{"problem_id": "double", "sample')  # what a killed writer leaves
    executions.clear()
    advanced: list[int] = []
    with Grader(PROBLEMS, CONFIG) as grader:
        verdicts = grader.grade_programs(map(grader.submission, samples), path, advanced.append)
    assert len(executions) == 2
    assert verdicts[:4] == first
    assert [verdict.sample_index for verdict in verdicts if verdict.passed] == [2]
    assert path.read_bytes().startswith(before)
    assert read_verdicts(path) == {verdict_key(verdict): verdict for verdict in verdicts}
    assert sum(advanced) == 6


def verdict_key(verdict: Verdict) -> tuple[str, int]:
    return verdict.problem_id, verdict.sample_index


def test_identical_programs_run_only_once(tmp_path: Path, executions: Executions):
    with Grader(PROBLEMS, CONFIG) as grader:
        first = grader.grade_programs(
            map(grader.submission, [sample(GOOD, index=n) for n in range(5)]), tmp_path / "a.jsonl"
        )
        second = grader.grade_programs(
            map(grader.submission, [sample(GOOD, index=n) for n in range(5)]), tmp_path / "b.jsonl"
        )
    assert [program.source.rstrip() for program, _ in executions] == [GOOD]
    assert first == second
    assert len(first) == 5


def test_the_same_source_runs_again_for_another_problem(grader: Grader, tmp_path: Path):
    verdicts = grader.grade_programs(
        map(grader.submission, [sample(GOOD), sample(GOOD, problem="same")]), tmp_path / "verdicts.jsonl"
    )
    assert [verdict.status for verdict in verdicts] == ["passed", "wrong_answer"]


class TestTimeLimits:
    """A program is run again alone if it ends between once and twice its CPU limit, or at the wall-time limit."""

    @staticmethod
    def executed(ending: str, cpu_seconds: float) -> Execution:
        outputs = ("2", "4", "6") if ending == "completed" else ()
        return Execution(outputs=outputs, cpu_seconds=(cpu_seconds,) * len(outputs), ending=ending)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("first", "alone", "status", "runs"),
        [
            (("completed", 0.3), None, "passed", 1),
            (("completed", 0.6), ("completed", 0.35), "passed", 2),
            (("completed", 0.6), ("timeout", 0.0), "timeout", 2),
            (("timeout", 0.0), None, "timeout", 1),
            (("starved", 0.0), ("completed", 0.1), "passed", 2),
            (("starved", 0.0), ("starved", 0.0), "timeout", 2),
            (("runtime_error", 0.0), None, "runtime_error", 1),
        ],
    )
    def test_which_programs_run_again(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, first: tuple[str, float],
        alone: tuple[str, float] | None, status: str, runs: int,
    ):  # fmt: skip
        limits_seen: list[float] = []

        def execute(self: Sandbox, program: Program, inputs: Sequence[str], limits: Limits, **_: bool) -> Execution:
            limits_seen.append(limits.cpu_seconds)
            outcome = first if len(limits_seen) == 1 else alone
            assert outcome is not None, "the program ran a second time"
            return TestTimeLimits.executed(*outcome)

        monkeypatch.setattr(Sandbox, "execute", execute)
        with Grader(PROBLEMS, CONFIG) as grader:
            assert grade_one(grader, tmp_path, GOOD).status == status
        assert limits_seen == [0.8, 0.4][:runs]

    def test_a_verdict_is_written_only_after_the_second_run(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        path = tmp_path / "verdicts.jsonl"

        def execute(self: Sandbox, program: Program, inputs: Sequence[str], limits: Limits, **_: bool) -> Execution:
            if limits.cpu_seconds == CONFIG.cpu_seconds:
                assert [json.loads(line)["sample_index"] for line in path.read_text().splitlines()] == [1]
            slow = program.source.rstrip() == GOOD
            return TestTimeLimits.executed("starved" if slow else "completed", 0.0)

        monkeypatch.setattr(Sandbox, "execute", execute)
        with Grader(PROBLEMS, CONFIG) as grader:
            verdicts = grader.grade_programs(
                map(grader.submission, [sample(GOOD), sample(GOOD + "  # other", index=1)]), path
            )
        assert [verdict.status for verdict in verdicts] == ["timeout", "passed"]


class TestBrokenSandbox:
    @staticmethod
    def breaking(monkeypatch: pytest.MonkeyPatch, *, times: int, only: str | None = None) -> list[str]:
        """Let the sandbox break at its first ``times`` programs (whose source is ``only``)."""
        original, broken = Sandbox.execute, list[str]()

        def execute(self: Sandbox, program: Program, inputs: Sequence[str], limits: Limits, **_: bool) -> Execution:
            if len(broken) < times and only in (None, program.source.rstrip()):
                broken.append(program.source)
                self.close()
                raise SandboxBrokenError("gone")
            return original(self, program, inputs, limits, **_)

        monkeypatch.setattr(Sandbox, "execute", execute)
        return broken

    def test_a_program_that_breaks_the_sandbox_once_is_run_again(self, monkeypatch: pytest.MonkeyPatch):
        self.breaking(monkeypatch, times=1)
        with Checker(CONFIG) as checker:
            assert checker.check(PROBLEMS[0], GOOD).verdict.status == "passed"

    def test_one_program_that_always_breaks_the_sandbox_is_a_runtime_error(self, monkeypatch: pytest.MonkeyPatch):
        self.breaking(monkeypatch, times=99, only=GOOD)
        with Checker(CONFIG) as checker:
            assert checker.check(PROBLEMS[0], GOOD).verdict.status == "runtime_error"

    def test_a_sandbox_that_always_breaks_is_an_infrastructure_error(self, monkeypatch: pytest.MonkeyPatch):
        self.breaking(monkeypatch, times=99)
        with Checker(CONFIG) as checker:
            assert checker.check(PROBLEMS[0], GOOD).verdict.status == "infrastructure_error"

    def test_an_infrastructure_error_is_not_reused_for_an_equal_program(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        with Grader(PROBLEMS, CONFIG) as grader:
            with monkeypatch.context() as patch:
                self.breaking(patch, times=99)
                assert grade_one(grader, tmp_path, GOOD).status == "infrastructure_error"
            (verdict,) = grader.grade_programs(
                map(grader.submission, [sample(GOOD, index=1)]), tmp_path / "other.jsonl"
            )
        assert verdict.passed


def test_a_problem_without_tests_is_an_error():
    problem = Problem(id="p1", source="test", statement="?", form="stdin")
    with pytest.raises(UserError, match="p1: has no test"):
        Grader([problem], CONFIG)


def test_a_missing_bubblewrap_is_reported_before_grading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get install bubblewrap"):
        Grader(PROBLEMS, CONFIG)


def test_a_bubblewrap_that_cannot_start_is_reported_before_grading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    write_executable(tmp_path / "bwrap", "echo 'bwrap: setting up uid map: Permission denied' >&2\nexit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="uid map: Permission denied"):
        Grader(PROBLEMS, CONFIG)
