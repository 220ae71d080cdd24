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
from dataclasses import dataclass

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.grading.compare import stdout_difference, value_difference
from megatron_ssd.grading.references import SECONDS_FOR_ALL, CanonicalRun, References
from megatron_ssd.grading.rules import EVALPLUS_CALLS, Rules, configured_rules, rules_of
from megatron_ssd.sandbox.execution import Ending, Execution, Failure
from megatron_ssd.sandbox.sandbox import Limits, Program, Sandbox, SandboxBrokenError
from megatron_ssd.schema import Problem, TestCase, VerdictStatus

log = logging.getLogger(__name__)

_LOAD_FACTOR = 2.0
_WALL_FACTOR, _WALL_EXTRA_SECONDS = 4.0, 5.0  # the wall-clock limit, for programs that wait instead of computing
_OUTPUT_FACTOR, _EXTRA_OUTPUT = 6, 1 << 16  # bytes per expected character, which JSON may escape, and for white space
_STATUS: dict[Ending, VerdictStatus] = {
    "completed": "passed",
    "runtime_error": "runtime_error",
    "timeout": "timeout",
    "starved": "timeout",
    "memory": "memory",
    "syntax_error": "syntax_error",
    "failed_check": "wrong_answer",
}
_LETTERS: dict[VerdictStatus, str] = {
    "passed": ".", "wrong_answer": "W", "runtime_error": "R", "timeout": "T", "memory": "M", "syntax_error": "S",
    "infrastructure_error": "I",
}  # fmt: skip
_KNOWN_GOOD = Program(source="def f(x):\n    return x\n", form="function", function_name="f")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """The result of a program. See ``Verdict`` for ``by_test``, and the module for ``inconclusive``."""

    status: VerdictStatus
    tests_passed: int = 0
    failed_test: int | None = None
    detail: str = ""
    cpu_seconds: float = 0.0
    by_test: str = ""
    inconclusive: bool = False


@dataclass(frozen=True, slots=True)
class _TestResult:
    """The result of one test."""

    status: VerdictStatus
    detail: str = ""
    is_starved: bool = False


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
                return CheckResult(status="runtime_error", failed_test=0, detail=f"broke its sandbox twice ({error})")
            return CheckResult(status="infrastructure_error", detail=str(error))

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
            return CheckResult(status="infrastructure_error", detail=canonical.flaw)
        if canonical is not None and problem.form == "checks":
            rules = dataclasses.replace(rules, cpu_seconds=canonical.script_seconds(rules.cpu_seconds))
        return self._run_tests(problem, program, rules, canonical, alone)

    def _run_tests(
        self, problem: Problem, program: Program, rules: Rules, canonical: CanonicalRun | None, alone: bool
    ) -> CheckResult:
        """Run the program on tests until one fails, or on all of them."""
        results: list[_TestResult] = []
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
            failed = results[-1].status != "passed"
            if (failed and self._config.stop_at_first_failure) or results[-1].status == "syntax_error":
                break
            if problem.form == "checks":  # a process that died cannot run the remaining scripts
                results += [results[-1]] * (len(problem.tests) - len(results))
        return _summarise(results, cpu, inconclusive=not alone and (is_slow or any(r.is_starved for r in results)))

    def _results(
        self, problem: Problem, tests: Sequence[TestCase], execution: Execution, *, alone: bool
    ) -> list[_TestResult]:
        """Results of all tests that ran, or of those up to the first failure if only that one matters."""
        results: list[_TestResult] = []
        for output, test in zip(execution.outputs, tests, strict=False):
            results.append(self._result(problem, output, test))
            if results[-1].status != "passed" and self._config.stop_at_first_failure:
                return results
        if execution.ending != "completed":
            detail = execution.detail
            if execution.ending == "timeout" and not alone:
                detail += f" ({_LOAD_FACTOR:g} times its limit, as in every first run)"
            results.append(_TestResult(_STATUS[execution.ending], detail, execution.ending == "starved"))
        return results

    def _result(self, problem: Problem, output: str | Failure, test: TestCase) -> _TestResult:
        if isinstance(output, Failure):
            return _TestResult(_STATUS[output.ending], output.detail)
        if problem.form not in ("stdin", "function"):
            return _TestResult("passed")  # it was compared in the sandbox
        differ = value_difference if problem.form == "function" else stdout_difference
        difference = differ(output, test.output, tolerance=self._config.tolerance)
        return _TestResult("passed") if difference is None else _TestResult("wrong_answer", difference)

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


def _summarise(results: Sequence[_TestResult], cpu_seconds: float, *, inconclusive: bool) -> CheckResult:
    failures = [index for index, result in enumerate(results) if result.status != "passed"]
    first = results[failures[0]] if failures else _TestResult("passed")
    return CheckResult(
        status=first.status,
        tests_passed=len(results) - len(failures),
        failed_test=failures[0] if failures else None,
        detail=first.detail,
        cpu_seconds=cpu_seconds,
        by_test="".join(_LETTERS[result.status] for result in results),
        inconclusive=inconclusive,
    )
