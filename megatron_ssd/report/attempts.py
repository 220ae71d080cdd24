"""Reads every problem of the benchmark with the attempts of both models, each at its best setting.

Attempts come from ``generations`` and ``verdicts`` in ``eval/NAME``, tests and statements from ``problems.jsonl``.
Texts are cut while they are read, so that memory holds at most ``MOST_KEPT`` characters of each part of a response.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_ssd.artifacts.jsonl import iter_jsonl
from megatron_ssd.errors import UserError
from megatron_ssd.evaluation.problem_file import PROBLEMS_FILE, Excerpt, ShortProblem, read_problems
from megatron_ssd.evaluation.results import EvaluationResults, Score
from megatron_ssd.grading.rules import rules_of
from megatron_ssd.progress import progress
from megatron_ssd.prompts.extract import extract_program
from megatron_ssd.schema import CHECKED_FORMS, FinishReason, Sample, Verdict, VerdictStatus

COLUMNS = ("base_best", "ssd_best")  # keys of the scores that are shown side by side
MOST_KEPT = 32_768  # characters of the text before a program, of the program, and of the text after it
_TITLE_CHARACTERS = 80
_EXAMPLES = 3

Solved = Literal["both", "ssd", "base", "neither"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A response and its verdict; the response is ``before``, then ``program``, then ``after``.

    ``program`` is None if there is none, or if it has parts of several blocks; then the response is in ``before``.
    """

    verdict: Verdict
    finish_reason: FinishReason
    num_tokens: int
    before: Excerpt
    program: Excerpt | None
    after: Excerpt


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemPage:
    """One problem. ``attempts`` has a tuple for each of ``COLUMNS``.

    ``tests`` has the tests that some attempt failed first. ``half`` and ``tests`` are empty if the evaluation kept
    no texts of its problems.
    """

    problem_id: str
    title: str
    difficulty: str
    date: str
    half: str
    prompt: Excerpt
    statement: Excerpt
    starter_code: str
    tests: dict[int, tuple[Excerpt, Excerpt]]  # index -> (input, expected output)
    has_checks: bool  # the input of a test is a script of assertions or a list of arguments, without an expected output
    attempts: tuple[tuple[Attempt, ...], ...]

    def passed(self, column: int) -> tuple[int, int]:
        """Numbers of programs that passed every test and of programs that were graded."""
        statuses = [attempt.verdict.status for attempt in self.attempts[column]]
        return statuses.count("passed"), len(statuses) - statuses.count("infrastructure_error")

    @property
    def change(self) -> float | None:
        """Share of passing programs of SSD minus that of the base; None if grading failed on all of one."""
        (base, base_total), (ssd, ssd_total) = self.passed(0), self.passed(1)
        return ssd / ssd_total - base / base_total if base_total and ssd_total else None

    @property
    def solved(self) -> Solved:
        """The models of which at least one program passes."""
        base, ssd = (self.passed(column)[0] > 0 for column in range(len(COLUMNS)))
        if base and ssd:
            return "both"
        return "ssd" if ssd else "base" if base else "neither"

    @property
    def statuses(self) -> list[VerdictStatus]:
        """Every verdict that occurs, sorted."""
        return sorted({attempt.verdict.status for column in self.attempts for attempt in column})


@dataclass(frozen=True, kw_only=True)
class ProblemPages:
    """Everything that ``problems-NAME.html`` shows. ``columns`` are the headline scores that ``COLUMNS`` names."""

    problems: tuple[ProblemPage, ...]
    columns: tuple[Score, ...]
    difficulties: tuple[str, ...]  # from easy to hard
    has_tests: bool  # False for an evaluation that was published without problems.jsonl

    @property
    def examples(self) -> tuple[ProblemPage, ...]:
        """The first problem by id of each difficulty. The choice does not depend on outcomes, so it favors no model."""
        first: dict[str, ProblemPage] = {}
        for problem in sorted(self.problems, key=lambda problem: problem.problem_id):
            first.setdefault(problem.difficulty, problem)
        return tuple(first[name] for name in self.difficulties if name in first)[:_EXAMPLES]


def read_problem_pages(folder: Path, scores: EvaluationResults) -> ProblemPages:
    """Read each problem of a benchmark.

    Args:
        folder: ``run_dir/eval/NAME``.
        scores: names the problems and each model's best setting.

    Raises:
        UserError: a file is missing or broken, or generations and verdicts are not of the same samples.
    """
    columns = tuple(scores.score(key) for key in COLUMNS)
    kept = folder / PROBLEMS_FILE
    known = read_problems(kept) if kept.is_file() else {}
    attempts, prompts = [], dict[str, str]()
    for score in columns:
        own = _read_attempts(folder, score, known, prompts, prompt_opens_thinking=scores.prompt_opens_thinking)
        if unmatched := own.keys() ^ scores.difficulties.keys():
            which = f"problem {min(unmatched)} is in the generations of {score.model} or in summary.json, not in both"
            raise _mismatch(folder, which)
        attempts.append(own)
    problems = tuple(
        _page(problem_id, difficulty, known.get(problem_id), prompts[problem_id], [own[problem_id] for own in attempts])
        for problem_id, difficulty in scores.difficulties.items()
    )
    named = list(dict.fromkeys([*columns[0].by_difficulty, *scores.difficulties.values()]))
    return ProblemPages(problems=problems, columns=columns, difficulties=tuple(named), has_tests=bool(known))


def _read_attempts(
    folder: Path,
    score: Score,
    known: Mapping[str, ShortProblem],
    prompts: dict[str, str],
    *,
    prompt_opens_thinking: bool,
) -> dict[str, tuple[Attempt, ...]]:
    """Attempts by problem id, in the order of their index; adds the prompt of each problem to ``prompts``."""
    name = f"{score.model}/{score.decoding}.jsonl"
    graded = (Verdict.from_json(record) for record in iter_jsonl(folder / "verdicts" / name))
    verdicts = {verdict.key: verdict for verdict in graded}
    attempts: defaultdict[str, list[Attempt]] = defaultdict(list)
    records = iter_jsonl(folder / "generations" / name)
    for record in progress(records, desc=f"reading programs of {score.model}", unit="program", total=len(verdicts)):
        sample = Sample.from_json(record)
        verdict = verdicts.pop(sample.key, None)
        if verdict is None:
            raise _mismatch(folder / "verdicts" / name, f"no verdict on sample {sample.key}")
        kept = known.get(sample.problem_id)
        found = extract_program(
            sample.response,
            rule=rules_of(kept.source if kept else "").extraction,
            entry_point=kept.function_name if kept else None,
            prompt_opens_thinking=prompt_opens_thinking,
        )
        attempts[sample.problem_id].append(_attempt(sample, verdict, found.program))
        if sample.problem_id not in prompts:
            prompts[sample.problem_id] = "\n\n".join(message["content"] for message in sample.messages)
    if verdicts:
        raise _mismatch(folder / "verdicts" / name, f"no response to verdict {min(verdicts)}")
    return {key: tuple(sorted(own, key=lambda attempt: attempt.verdict.sample_index)) for key, own in attempts.items()}


def _attempt(sample: Sample, verdict: Verdict, program: str | None) -> Attempt:
    before, after = sample.response, ""
    if program is not None and program in sample.response:  # lines are unchanged, but some may be left out between them
        before, _, after = sample.response.rpartition(program)
    else:
        program = None
    return Attempt(
        verdict=verdict,
        finish_reason=sample.finish_reason,
        num_tokens=len(sample.response_token_ids),
        before=Excerpt.of(before, MOST_KEPT),
        program=None if program is None else Excerpt.of(program, MOST_KEPT),
        after=Excerpt.of(after, MOST_KEPT),
    )


def _page(
    problem_id: str, difficulty: str, kept: ShortProblem | None, prompt: str, attempts: list[tuple[Attempt, ...]]
) -> ProblemPage:
    shown_prompt = Excerpt.of(prompt, MOST_KEPT)
    failures = {attempt.verdict.failed_test for column in attempts for attempt in column}
    failed = sorted(index for index in failures if index is not None)
    tests = {index: kept.tests[index] for index in failed if index < len(kept.tests)} if kept else {}
    return ProblemPage(
        problem_id=problem_id,
        title=(kept.title or _first_line(kept.statement.head)) if kept else "",
        difficulty=difficulty,
        date=(kept.date or "") if kept else "",
        half=kept.half if kept else "",
        prompt=shown_prompt,
        statement=kept.statement if kept else shown_prompt,
        starter_code=kept.starter_code if kept else "",
        tests={index: (test.input, test.output) for index, test in tests.items()},
        has_checks=kept is not None and kept.form in CHECKED_FORMS,
        attempts=tuple(attempts),
    )


def _first_line(statement: str) -> str:
    """The title of a problem without one; empty if the line is too long for a title."""
    line = statement.strip().partition("\n")[0]
    return line if len(line) <= _TITLE_CHARACTERS else ""


def _mismatch(path: Path, what: str) -> UserError:
    return UserError(f"{path}", rule=what, fix="run launch/evaluate.py again with replace=true")
