"""Examples of programs for the report: one problem per difficulty, with the first response of each model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_ssd.artifacts.jsonl import iter_jsonl
from megatron_ssd.evaluation.problem_file import PROBLEMS_FILE, Excerpt, ShortProblem, read_problems
from megatron_ssd.evaluation.results import EvaluationResults, ModelName, Score
from megatron_ssd.report.formatting import visible
from megatron_ssd.schema import Sample, Verdict

_EXAMPLES = 3
_PROMPT_CHARACTERS = 1500  # the full prompts are in eval/generations
_RESPONSE_CHARACTERS = 2500
_DETAIL_CHARACTERS = 120
_INPUT_CHARACTERS = 300


@dataclass(frozen=True, kw_only=True)
class FailedTest:
    """The first test that a program fails: its number, counted from 1, of ``total``, and its input.

    If ``is_check``, the input is a script of assertions.
    """

    number: int
    total: int
    input: str
    is_check: bool


@dataclass(frozen=True, kw_only=True)
class Program:
    """A response of one model and its verdict; ``failed`` is None if no test failed or its text was not kept."""

    model: ModelName
    decoding: str
    response: str
    verdict: str
    detail: str
    failed: FailedTest | None


@dataclass(frozen=True, kw_only=True)
class Example:
    """A problem with one response of each model."""

    problem_id: str
    difficulty: str
    prompt: str
    programs: tuple[Program, ...]


def read_examples(folder: Path, scores: EvaluationResults) -> tuple[Example, ...]:
    """The first problem by id of each difficulty, with the first program of each model at its best setting.

    The choice does not depend on outcomes, so it favours neither model.

    Raises:
        UserError: a file of the published ``eval`` folder is missing or cannot be read.
    """
    best = (scores.score("base_best"), scores.score("ssd_best"))
    kept = read_problems(folder / PROBLEMS_FILE) if (folder / PROBLEMS_FILE).is_file() else {}
    samples = [_first_samples(folder / "generations" / score.model / f"{score.decoding}.jsonl") for score in best]
    verdicts = [_first_verdicts(folder / "verdicts" / score.model / f"{score.decoding}.jsonl") for score in best]
    chosen: dict[str, str] = {}
    order = list(best[0].by_difficulty)
    for problem_id in sorted(set(scores.difficulties).intersection(*samples, *verdicts)):
        chosen.setdefault(scores.difficulties[problem_id], problem_id)
    ordered = sorted(chosen, key=lambda name: order.index(name) if name in order else len(order))
    return tuple(
        _example(chosen[name], name, best, samples, verdicts, kept.get(chosen[name])) for name in ordered[:_EXAMPLES]
    )


def _example(
    problem_id: str,
    difficulty: str,
    best: tuple[Score, Score],
    samples: list[dict[str, Sample]],
    verdicts: list[dict[str, Verdict]],
    kept: ShortProblem | None,
) -> Example:
    prompt = "\n\n".join(message["content"] for message in samples[0][problem_id].messages)
    programs = [
        Program(
            model=score.model,
            decoding=score.decoding,
            response=_cut(own[problem_id].response, _RESPONSE_CHARACTERS),
            verdict=verdict_of[problem_id].status.replace("_", " "),
            detail=_cut(verdict_of[problem_id].detail, _DETAIL_CHARACTERS),
            failed=_failed_test(verdict_of[problem_id], kept),
        )
        for score, own, verdict_of in zip(best, samples, verdicts, strict=True)
    ]
    return Example(
        problem_id=problem_id, difficulty=difficulty, prompt=_cut(prompt, _PROMPT_CHARACTERS), programs=tuple(programs)
    )


def _failed_test(verdict: Verdict, kept: ShortProblem | None) -> FailedTest | None:
    index = verdict.failed_test
    if kept is None or index is None or index >= len(kept.tests):
        return None
    return FailedTest(
        number=index + 1,
        total=verdict.tests_total,
        input=_excerpt_text(kept.tests[index].input.shortened(_INPUT_CHARACTERS)),
        is_check=kept.form == "checks",
    )


def _excerpt_text(excerpt: Excerpt) -> str:
    """The text, with the number of characters that were left out."""
    gap = f"\n\u2026 {excerpt.left_out:,} characters \u2026\n" if excerpt.left_out else ""
    return visible(f"{excerpt.head}{gap}{excerpt.tail}")


def _first_samples(path: Path) -> dict[str, Sample]:
    rows = (Sample.from_json(row) for row in iter_jsonl(path))
    return {sample.problem_id: sample for sample in rows if sample.sample_index == 0}


def _first_verdicts(path: Path) -> dict[str, Verdict]:
    rows = (Verdict.from_json(row) for row in iter_jsonl(path))
    return {verdict.problem_id: verdict for verdict in rows if verdict.sample_index == 0}


def _cut(text: str, limit: int) -> str:
    return visible(text if len(text) <= limit else text[:limit] + "\n\u2026")
