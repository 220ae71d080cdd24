"""An ``eval`` folder with problems of every outcome, for tests of ``problems.html``."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_ssd.artifacts.jsonl import JsonlWriter
from megatron_ssd.evaluation.grid import Halves
from megatron_ssd.evaluation.problem_file import PROBLEMS_FILE, write_problems
from megatron_ssd.evaluation.results import EvaluationResults, ModelName, Score
from megatron_ssd.grading.metrics import Estimate
from megatron_ssd.report.attempts import ProblemPages, read_problem_pages
from megatron_ssd.report.problems_page import render_problems
from megatron_ssd.schema import FinishReason, Problem, Sample, TestCase, Verdict, VerdictStatus
from tests.helpers.sweep_summary import sweep_results

DECODINGS: dict[ModelName, str] = {"base": "T1-k20-p0.8", "ssd": "T1.5-k20-p0.8"}
LETTERS: dict[VerdictStatus, str] = {
    "wrong_answer": "W", "runtime_error": "R", "timeout": "T", "memory": "M", "syntax_error": "S",
    "infrastructure_error": "I",
}  # fmt: skip
DETAILS: dict[VerdictStatus, str] = {
    "wrong_answer": "line 1: expected '12', got '7'", "runtime_error": "IndexError: list index out of range",
    "timeout": "took more than 10 s of CPU time", "memory": "MemoryError", "syntax_error": "invalid syntax (line 2)",
    "no_code": "no fenced program in the response", "infrastructure_error": "the sandbox could not be started",
}  # fmt: skip
# Ends its HTML element, runs a script, loads an image, hides and reorders text, and is not valid UTF-8.
HOSTILE = (
    "</script></pre><script>window.attacked = 1</script><img src=x onerror='window.attacked = 2'>"
    "<!--<script>\x00\u202e\u2066\u2028\ud83d\u200b &lt; {{ 7 * 7 }}"
)
NUM_TESTS = 12


@dataclass(frozen=True)
class Try:
    """A program to generate, with its verdict and its first failed test."""

    status: VerdictStatus
    failed: int = 2
    program: str = "def f(xs):\n    return [x * 2 for x in xs if x > 3]\n"
    around: str = "I think about it first.\n"
    finish: FinishReason = "stop"


def tries(*statuses: VerdictStatus, program: str = Try.program) -> list[Try]:
    """One program for each status."""
    return [Try(status, program=f"{program}# {status}\n") for status in statuses]


def problem(problem_id: str, difficulty: str, title: str = "", *, form: str = "stdin") -> Problem:
    """A problem whose tests have different lengths."""
    rng = random.Random(problem_id)
    tests = tuple(
        TestCase(input=" ".join(str(rng.randrange(100)) for _ in range(40 * (index + 1))), output=str(rng.random()))
        for index in range(NUM_TESTS)
    )
    return Problem(
        id=problem_id, source="made up", title=title, difficulty=difficulty, date=f"2025-02-{1 + len(title) % 20:02d}",
        form=form, tests=tests, starter_code="def f(xs):\n    ...\n" if form == "function" else "",  # type: ignore[arg-type]
        statement=f"Read a list, keep the numbers above 3 and double each.\n\n{HOSTILE if '<' in problem_id else ''}",
    )  # fmt: skip


W: VerdictStatus = "wrong_answer"
T: VerdictStatus = "timeout"
R: VerdictStatus = "runtime_error"
_LONG = Try("no_code", program="", around="So let me think about it again. " * 4000, finish="length")
# Each problem with the programs of the base and those of SSD.
RUN: list[tuple[Problem, list[Try], list[Try]]] = [
    (problem("abc387_a", "easy", "Happy New Year"), tries("passed", "passed", W), tries("passed", "passed", "passed")),
    (problem("abc387_b", "easy", "9x9 Sum", form="function"), tries(W, W, "memory"), tries("passed", W, "passed")),
    (problem("arc191_a", "medium", "Replace Digits"), tries("passed", T, R), tries(T, T, W)),
    (problem("arc191_c", "medium", "A^n - 1"),
     [_LONG] * 3, [Try("syntax_error", 0), Try("infrastructure_error", 0), Try(W, 11)]),
    (problem("3701", "hard", "Find Minimum Cost to Remove Array Elements"), tries(W, T, T), tries(W, "passed", T)),
    (problem("<b>x</b>&\"'/%", "hard", HOSTILE),
     tries(W, W, "passed", program=HOSTILE + "\n"), tries(W, R, W, program=HOSTILE + "\n")),
]  # fmt: skip


def write_evaluation(
    folder: Path, run: Sequence[tuple[Problem, list[Try], list[Try]]], *, with_problems: bool = True
) -> EvaluationResults:
    """Write generations, verdicts and problems as the evaluation does; returns matching scores."""
    for column, (model, label) in enumerate(DECODINGS.items()):
        with (
            JsonlWriter(folder / "generations" / model / f"{label}.jsonl") as generations,
            JsonlWriter(folder / "verdicts" / model / f"{label}.jsonl") as verdicts,
        ):
            for one, *written in run:
                for index, wanted in enumerate(written[column]):
                    generations.write(_sample(one, index, wanted).to_json())
                    verdicts.write(_verdict(one, index, wanted).to_json())
    problems = [one for one, *_ in run]
    if with_problems:
        report = np.arange(len(problems)) % 2 == 1
        write_problems(folder / PROBLEMS_FILE, problems, Halves(selection=~report, report=report))
    return scores({one.id: one.difficulty or "unrated" for one in problems})


def scores(difficulties: dict[str, str]) -> EvaluationResults:
    """Scores of a run whose best settings are ``DECODINGS``."""
    half = Estimate(value=0.5, low=0.4, high=0.6)
    return dataclasses.replace(
        sweep_results(()),
        headline=tuple(
            Score(
                key=f"{model}_best", title=f"{model} at its best", model=model, decoding=label, num_problems=3,
                num_samples=3, overall={1: half}, base_tests=None, problems_by_difficulty={}, ssd_gain=None,
                by_difficulty={n: {1: half} for n in ("easy", "medium", "hard")},
            )
            for model, label in DECODINGS.items()
        ),
        difficulties=difficulties,
    )  # fmt: skip


def read(folder: Path, found: EvaluationResults) -> ProblemPages:
    """The content of ``problems.html`` that the report reads from the folder."""
    return read_problem_pages(folder, found)


def write_page(path: Path, pages: ProblemPages, *, page_mib: float = 8.0) -> Path:
    """Write ``problems.html`` to ``path``."""
    page = render_problems(pages, benchmark="minicode", run_name="demo <run>", code_version="1.0", page_mib=page_mib)
    path.write_text(page, encoding="utf-8")
    return path


def _sample(one: Problem, index: int, wanted: Try) -> Sample:
    fence = f"```python\n{wanted.program}```\nThat is all." if wanted.program else ""
    return Sample(
        problem_id=one.id, sample_index=index, messages=[{"role": "user", "content": one.statement}],
        prompt_token_ids=[1], response=wanted.around + fence, response_token_ids=list(range(40 + index)),
        finish_reason=wanted.finish, seed=index, sampling_hash="c" * 64, model_revision="r",
    )  # fmt: skip


def _verdict(one: Problem, index: int, wanted: Try) -> Verdict:
    failed = None if wanted.status in ("passed", "no_code") else wanted.failed
    ran = (
        "." * NUM_TESTS
        if wanted.status == "passed"
        else ""
        if failed is None
        else "." * failed + LETTERS[wanted.status]
    )
    return Verdict(
        problem_id=one.id, sample_index=index, status=wanted.status, tests_passed=ran.count("."),
        tests_total=NUM_TESTS, failed_test=failed, by_test=ran, detail=DETAILS.get(wanted.status, ""),
    )  # fmt: skip
