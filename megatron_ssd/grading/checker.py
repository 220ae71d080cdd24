"""Checks one program against the tests of one problem.

The program runs in a sandbox; its outputs are compared on the host.

Time limits must work under load. A test may use ``cpu_seconds`` of CPU time. On a busy machine the same work costs more
CPU time, so the limit of the first run is twice as high. If a program stays within ``cpu_seconds`` or exceeds twice as
much, that run decides. If it is between the two, or reaches the wall-clock limit, the result is ``inconclusive``: the
program runs once more, while no other program runs, with ``cpu_seconds`` as its limit, and that run decides.
"""

from __future__ import annotations

import dataclasses
import logging
import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.grading.compare import stdout_difference, value_difference
from megatron_ssd.grading.references import SECONDS_FOR_ALL, CanonicalRun, References
from megatron_ssd.grading.rules import EVALPLUS_CALLS, Rules, configured_rules, rules_of
from megatron_ssd.sandbox.execution import Ending, Execution, Failure
from megatron_ssd.sandbox.sandbox import Limits, Program, Sandbox, SandboxBrokenError
from megatron_ssd.schema import CHECKED_FORMS, Problem, TestCase, Verdict, VerdictStatus

log = logging.getLogger(__name__)

_LOAD_FACTOR = 2.0
_WALL_FACTOR, _WALL_EXTRA_SECONDS = 4.0, 5.0  # the wall-clock limit, for programs that wait instead of computing
_OUTPUT_FACTOR, _EXTRA_OUTPUT = 6, 1 << 16  # bytes per expected character, which JSON may escape, and for white space
# Why a test failed -> the status of its program, and its letter in ``Verdict.by_test``.
_STATUS: dict[Ending, tuple[VerdictStatus, str]] = {
    "runtime_error": ("runtime_error", "R"),
    "timeout": ("timeout", "T"),
    "starved": ("timeout", "T"),
    "memory": ("memory", "M"),
    "syntax_error": ("syntax_error", "S"),
    "failed_check": ("wrong_answer", "W"),
}
_KNOWN_GOOD = Program(source="def f(x):\n    return x\n", form="function", function_name="f")


class CheckResult(NamedTuple):
    """The verdict on a program, as on sample 0 of its problem; see the module for ``inconclusive``."""

    verdict: Verdict
    inconclusive: bool = False


class Checker(AbstractContextManager["Checker"]):
    """Checks programs one after another in its own sandbox. Not thread-safe.

    Args:
        config: sandbox and limits.
        references: canonical solutions, which several checkers may share.
    """

    def __init__(self, config: SandboxConfig, references: References | None = None) -> None:
        self._config = config
        self._references = references or References()
        self._sandbox = Sandbox(config)

    def start(self) -> None:
        """Start the sandbox now instead of at the first program. Raises ``UserError`` if it cannot start."""
        self._sandbox.start()

    def check(self, problem: Problem, source: str, *, alone: bool = False) -> CheckResult:
        """Run ``source`` on the tests of ``problem``.

        ``alone`` says that no other program is running; then the result is never inconclusive.

        Raises:
            UserError: the sandbox cannot start on this machine.
        """
        try:
            return self._attempt(problem, source, alone)
        except SandboxBrokenError as error:
            log.warning("%s: sandbox broke (%s); trying this program again in a fresh one", problem.id, error)
        try:
            return self._attempt(problem, source, alone)
        except SandboxBrokenError as error:
            # Twice in a row is the program's fault, unless the checker fails without it too.
            if self._is_healthy():
                detail = f"broke its sandbox twice ({error})"
                return CheckResult(verdict_of(problem, "runtime_error", failed_test=0, detail=detail))
            return CheckResult(verdict_of(problem, "infrastructure_error", detail=str(error)))

    def _attempt(self, problem: Problem, source: str, alone: bool) -> CheckResult:
        rules = configured_rules(problem.source, self._config)
        program = Program(
            source=source,
            form=problem.form,
            function_name=problem.function_name,
            # As in LiveCodeBench's checker, which does not look at the starter code.
            class_name="Solution" if "class Solution" in source else None,
            prelude=rules.prelude,
            recursion_limit=rules.recursion_limit - (EVALPLUS_CALLS if problem.form == "evalplus" else 0),
            max_int_digits=rules.max_int_digits,
            text_streams=rules.text_streams,
        )
        canonical = self._references.find(problem, program, self._sandbox)
        if canonical is not None and canonical.flaw:
            return CheckResult(verdict_of(problem, "infrastructure_error", detail=canonical.flaw))
        if canonical is not None and problem.form == "checks":
            rules = dataclasses.replace(rules, cpu_seconds=canonical.script_seconds(rules.cpu_seconds))
        return self._run_tests(problem, program, rules, canonical, alone)

    def _run_tests(
        self, problem: Problem, program: Program, rules: Rules, canonical: CanonicalRun | None, alone: bool
    ) -> CheckResult:
        """Run the program on tests until one fails, or on all of them."""
        results: list[Failure | None] = []
        cpu, is_slow = 0.0, False
        factor = 1.0 if alone else _LOAD_FACTOR
        while len(results) < len(problem.tests):
            rest = problem.tests[len(results) :]
            # Scripts run one after another in one process, functions on all remaining tests, others on one test.
            batch = rest if problem.form in ("checks", "function") else rest[:1]
            if problem.form == "evalplus":
                assert canonical is not None
                reference = canonical.reference(problem, len(results), at_least=self._config.cpu_seconds, factor=factor)
                limits = self._limits(dataclasses.replace(rules, cpu_seconds=SECONDS_FOR_ALL), factor, batch)
                execution = self._sandbox.compare(program, reference, limits)
                allowed = [seconds / factor for seconds in reference.cpu_seconds]
                is_slow |= execution.cpu_total > SECONDS_FOR_ALL
                is_slow |= any(map(operator.gt, execution.cpu_seconds, allowed))
            else:
                execution = self._sandbox.execute(
                    program, [test.input for test in batch], self._limits(rules, factor, batch),
                    go_on=problem.form == "checks" and not self._config.stop_at_first_failure,
                )  # fmt: skip
                is_slow |= any(seconds > rules.cpu_seconds for seconds in execution.cpu_seconds)
            cpu += execution.cpu_total
            results += self._results(problem, batch, execution, alone=alone)
            last = results[-1]
            if last is not None and (self._config.stop_at_first_failure or last.ending == "syntax_error"):
                break
            if problem.form == "checks":  # a process that died cannot run the remaining scripts
                results += [last] * (len(problem.tests) - len(results))
        is_starved = any(failure is not None and failure.ending == "starved" for failure in results)
        return CheckResult(_summarise(problem, results, cpu), inconclusive=not alone and (is_slow or is_starved))

    def _results(
        self, problem: Problem, tests: Sequence[TestCase], execution: Execution, *, alone: bool
    ) -> list[Failure | None]:
        """The failure, if any, of each test that ran, or of those up to the first one if only that one matters."""
        results: list[Failure | None] = []
        for output, test in zip(execution.outputs, tests, strict=False):
            results.append(self._failure(problem, output, test))
            if results[-1] is not None and self._config.stop_at_first_failure:
                return results
        if execution.ending != "completed":
            detail = execution.detail
            if execution.ending == "timeout" and not alone:
                detail += f" ({_LOAD_FACTOR:g} times its limit, as in every first run)"
            results.append(Failure(ending=execution.ending, detail=detail))
        return results

    def _failure(self, problem: Problem, output: str | Failure, test: TestCase) -> Failure | None:
        if isinstance(output, Failure):
            return output
        if problem.form in CHECKED_FORMS:
            return None  # it was compared in the sandbox
        differ = value_difference if problem.form == "function" else stdout_difference
        difference = differ(output, test.output, tolerance=self._config.tolerance)
        return None if difference is None else Failure(ending="failed_check", detail=difference)

    def _limits(self, rules: Rules, factor: float, tests: Sequence[TestCase]) -> Limits:
        """The limits of one run, with room for the expected outputs of ``tests``."""
        cpu_seconds = factor * rules.cpu_seconds
        expected = sum(len(test.output) for test in tests)
        return Limits(
            cpu_seconds=cpu_seconds,
            wall_seconds=_WALL_FACTOR * cpu_seconds + _WALL_EXTRA_SECONDS,
            memory_bytes=rules.memory_mib << 20,
            output_bytes=max(self._config.output_mib << 20, _OUTPUT_FACTOR * expected + _EXTRA_OUTPUT),
        )

    def _is_healthy(self) -> bool:
        """Whether a program that is known to be correct passes."""
        try:
            limits = self._limits(rules_of("livecodebench"), _LOAD_FACTOR, ())
            return self._sandbox.execute(_KNOWN_GOOD, ["1"], limits).outputs == ("1",)
        except SandboxBrokenError:
            return False

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the sandbox."""
        self._sandbox.close()


def verdict_of(problem: Problem, status: VerdictStatus, **facts: Any) -> Verdict:
    """The verdict on sample 0 of a problem; ``facts`` are further fields."""
    return Verdict(problem_id=problem.id, sample_index=0, status=status, tests_total=len(problem.tests), **facts)


def _summarise(problem: Problem, results: Sequence[Failure | None], cpu_seconds: float) -> Verdict:
    failures = [(index, failure) for index, failure in enumerate(results) if failure is not None]
    return verdict_of(
        problem,
        _STATUS[failures[0][1].ending][0] if failures else "passed",
        tests_passed=len(results) - len(failures),
        failed_test=failures[0][0] if failures else None,
        detail=failures[0][1].detail if failures else "",
        cpu_seconds=round(cpu_seconds, 4),
        by_test="".join("." if failure is None else _STATUS[failure.ending][1] for failure in results),
    )
