"""Turns what was measured into the text of ``report.html``.

Sentences state what was measured and no more than that.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_ssd.evaluation.problem_file import Excerpt
from megatron_ssd.evaluation.results import EvaluationResults, ModelName, Score
from megatron_ssd.evaluation.tables import UNKNOWN, Measured, confidence_text, percent, points, split_cells
from megatron_ssd.formatting import DASH, counted, duration, visible
from megatron_ssd.general_benchmarks.results import ModelValue
from megatron_ssd.grading.metrics import Estimate, SignTest
from megatron_ssd.report import paper
from megatron_ssd.report.attempts import Attempt, ProblemPage
from megatron_ssd.report.data import ReportData, SamplingFacts, thin

ProgramCounts = dict[ModelName, tuple[int, float]]  # model -> (programs, share of all)

# Below this a model is too small to write a competitive-programming solution.
_USEFUL_PARAMETERS = 100_000_000
# Of an example; problems-NAME.html and eval/NAME/generations have the full texts.
_PROMPT_CHARACTERS, _RESPONSE_CHARACTERS, _DETAIL_CHARACTERS, _INPUT_CHARACTERS = 1500, 2500, 120, 300

SOURCES = {
    "authors": "from the authors",
    "several readings": "from readings of the paper that agree",
    "one report": "from one report",
    "sources conflict": "sources conflict",
}
FINISH_REASONS = {
    "stop": "stopped by itself",
    "length": "cut at the length limit",
    "skipped": "not run",
}


@dataclass(frozen=True, kw_only=True)
class Program:
    """The first response of one model, with its verdict.

    ``failed_test`` names the first test that it fails and has its input: a script of assertions, or what the program
    reads. It is None if no test failed or its text was not kept.
    """

    model: ModelName
    response: str
    verdict: str
    detail: str
    failed_test: tuple[str, str] | None


@dataclass(frozen=True, kw_only=True)
class Example:
    """A problem with one response of each model."""

    problem_id: str
    difficulty: str
    prompt: str
    programs: tuple[Program, ...]


def result_sentence(scores: EvaluationResults) -> str:
    """What the run found, in one or two sentences."""
    base, ssd = scores.score("base_best"), scores.score("ssd_best")
    k = scores.ks[0]
    if not (base.overall[k].is_known and ssd.overall[k].is_known):
        failed = [score.title for score in (base, ssd) if not score.overall[k].is_known]
        return f"Not measured: grading failed on every problem of the reporting half ({' and '.join(failed)})."
    if base.overall[k].value == ssd.overall[k].value == 0:
        return "Neither the base nor the self-distilled model solves a problem of the reporting half at its best."
    first = (
        f"At its best decode settings, the self-distilled model reaches {percent(ssd.overall[k]).value} % pass@{k} "
        f"and its base {percent(base.overall[k]).value} %."
    )
    return f"{first} {_difference_sentence(base, scores)}"


def measure_sentence(scores: EvaluationResults) -> str:
    """What was measured, on which half, and how the settings were chosen."""
    ssd = scores.score("ssd_best")
    cells = sum(cell.model == "ssd" for cell in scores.grid)
    problems, others = (counted(number, "problem") for number in (ssd.num_problems, scores.selection_problems))
    return (
        f"Measured on {problems} of {scores.benchmark} with {ssd.num_samples} programs per problem, "
        f"each run against hidden tests. For each model, \u201cat its best\u201d is the best of the same {cells} "
        f"decode settings by pass@{scores.ks[0]} on the other {others}; scores are reported on the half on which "
        f"nothing was chosen. Intervals are {confidence_text(scores.confidence)} intervals over problems."
    )


def notice(settings: Mapping[str, Any], benchmarks: Iterable[EvaluationResults]) -> str:
    """A warning that the scores of a tiny model on real problems mean nothing; empty for other runs."""
    real = [f"{settings['problems.name']} (problems)"] if settings.get("problems.name") != "minicode" else []
    real += [f"{one.benchmark} (benchmark)" for one in benchmarks if one.format != "minicode"]
    num_parameters = settings.get("model.num_parameters")
    if not real or num_parameters is None or num_parameters >= _USEFUL_PARAMETERS:
        return ""
    return (
        f"This run used real programming problems, {' and '.join(real)}, with a model of "
        f"{num_parameters / 1e6:.1f} million parameters. A model of that size writes nothing useful there. The scores "
        f"below say nothing about self-distillation; the page shows that the whole path runs, from problems to graded "
        f"programs."
    )


def outcomes(scores: EvaluationResults) -> list[tuple[str, ProgramCounts]]:
    """(verdict, its counts), the most common first; ``no code`` is followed by its causes."""
    best = {score.model: scores.setting(score) for score in (scores.score(key) for key in ("base_best", "ssd_best"))}
    totals = {model: sum(setting.outcomes.values()) for model, setting in best.items()}
    causes = _program_counts({model: setting.no_code_causes for model, setting in best.items()}, totals)
    found = []
    for verdict, counts in _program_counts({model: setting.outcomes for model, setting in best.items()}, totals):
        found.append((verdict.replace("_", " "), counts))
        if verdict == "no_code":
            found += [(f"no code: {cause}", each) for cause, each in causes]
    return found


def _program_counts(
    by_model: dict[ModelName, dict[str, int]], totals: dict[ModelName, int]
) -> list[tuple[str, ProgramCounts]]:
    """(name, its counts) of what ``by_model`` counts, the most common first."""
    names = sum(map(Counter, by_model.values()), Counter[str]())
    return [
        (name, {model: (by.get(name, 0), by.get(name, 0) / max(totals[model], 1)) for model, by in by_model.items()})
        for name, _ in names.most_common()
    ]


def finish_rows(sampling: SamplingFacts) -> list[tuple[str, int, float]]:
    """(how responses ended, number, share)."""
    total = max(sampling.num_samples, 1)
    return [
        (FINISH_REASONS.get(reason, reason), count, count / total) for reason, count in sampling.finish_reasons.items()
    ]


def dropped_rows(sampling: SamplingFacts) -> list[tuple[str, int]]:
    """(why samples were not trained on, number)."""
    not_run = {f"not run: {reason}": count for reason, count in sampling.skip_reasons.items()}
    filtered = {reason.replace("_", " "): n for reason, n in sampling.dropped.items() if reason != "skipped"}
    return [(reason, count) for reason, count in {**not_run, **filtered}.items() if count]


def training_note(data: ReportData) -> str:
    """How long training took and where its loss ended."""
    skipped = (
        f" Left out, because loss or gradient was not finite and no weight changed: {data.num_skipped:,} iterations."
        if data.num_skipped
        else ""
    )
    if not data.training:
        return f"No iteration was logged.{skipped}"
    last = data.training[-1]
    manifest = data.manifests["checkpoints"]
    _, size = thin(data.training)
    averaged = f" Each point of the curves is the mean of {size} iterations." if size > 1 else ""
    rates = sorted(point.tokens_per_second for point in data.training)
    epochs = f" ({manifest.facts['epochs']:.2g} epochs)" if "epochs" in manifest.facts else ""
    return (
        f"{last.iteration:,} iterations{epochs} in {duration(manifest.seconds)}, "
        f"{rates[len(rates) // 2]:,.0f} tokens per second (median); the last loss is {last.loss:.3f}."
        f"{averaged}{skipped}"
    )


def paper_comparison(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The paper's settings next to the run's, by group, and how many differ."""
    found = paper.deviations(settings)
    return {
        "paper": {
            "title": paper.TITLE,
            "reference": paper.REFERENCE,
            "model": paper.MODEL_TITLES[paper.reference_model(settings)],
        },
        "deviations": [(group, list(items)) for group, items in itertools.groupby(found, key=lambda d: d.group)],
        "sources": SOURCES,
        "differing": sum(item.same is False for item in found),
        "comparable": sum(item.same is not None for item in found),
    }


def stage_rows(data: ReportData) -> list[dict[str, str]]:
    """Engine, time and counts of each stage, in the order in which they ran."""
    return [
        {
            "stage": stage,
            "engine": f"{manifest.engine['name']} {manifest.engine['version']}" if manifest.engine else DASH,
            "seconds": duration(manifest.seconds),
            "created": manifest.created.replace("T", " ").replace("+00:00", " UTC"),
            "counts": ", ".join(f"{number:,} {what.replace('_', ' ')}" for what, number in manifest.counts.items()),
        }
        for stage, manifest in data.manifests.items()
    ]


def with_stderr(found: ModelValue | None) -> Measured:
    """The value of a general benchmark in percent, with its standard error."""
    if found is None:
        return UNKNOWN
    return Measured(
        value=f"{found.value * 100:.1f}",
        interval="standard error unknown" if found.stderr is None else f"\N{PLUS-MINUS SIGN} {found.stderr * 100:.1f}",
    )


def example_of(problem: ProblemPage) -> Example:
    """``problem`` with the first response of each model, shortened."""
    models: tuple[ModelName, ...] = ("base", "ssd")
    return Example(
        problem_id=problem.problem_id,
        difficulty=problem.difficulty,
        prompt=_beginning([problem.prompt], _PROMPT_CHARACTERS),
        programs=tuple(
            _first_program(model, problem, attempts[0])
            for model, attempts in zip(models, problem.attempts, strict=True)
        ),
    )


def run_facts(data: ReportData) -> list[tuple[str, str]]:
    """(name, value) of what the run was made with; a fact that is not known is left out."""
    host = data.manifests["eval"].host
    packages = {name: version for m in data.manifests.values() for name, version in m.packages.items()}
    world = data.settings.get("minicode.seed")
    facts = [
        ("model", str(data.settings.get("model.name"))),
        ("seed", f"{data.settings.get('seed')}{'' if world is None else f' (run), {world} (minicode world)'}"),
        ("device", str(data.settings.get("cluster.device"))),
        ("host", ", ".join(f"{name} {value}" for name, value in host.items())),
        ("packages", ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))),
        ("code", ", ".join(sorted({m.code_version for m in data.manifests.values()}))),
        ("all stages", duration(sum(m.seconds for m in data.manifests.values()))),
    ]
    return [(name, value) for name, value in facts if value]


def _first_program(model: ModelName, problem: ProblemPage, attempt: Attempt) -> Program:
    failed_test, verdict = None, attempt.verdict
    if verdict.failed_test is not None and verdict.failed_test in problem.tests:
        given = problem.tests[verdict.failed_test][0].shortened(_INPUT_CHARACTERS)
        gap = f"\n\u2026 {given.left_out:,} characters \u2026\n" if given.left_out else ""
        kind = "check" if problem.has_checks else "input"
        title = f"{kind} of test {verdict.failed_test + 1} of {verdict.tests_total}"
        failed_test = (title, visible(f"{given.head}{gap}{given.tail}"))
    parts = [attempt.before, *([] if attempt.program is None else [attempt.program]), attempt.after]
    return Program(
        model=model,
        response=_beginning(parts, _RESPONSE_CHARACTERS),
        verdict=verdict.status.replace("_", " "),
        detail=_beginning([Excerpt(verdict.detail)], _DETAIL_CHARACTERS),
        failed_test=failed_test,
    )


def _beginning(parts: Iterable[Excerpt], limit: int) -> str:
    """The first ``limit`` characters of a text in parts; a part that was cut begins with at least as many."""
    text = ""
    for part in parts:
        text += part.head
        if part.left_out:
            assert len(part.head) >= limit, (len(part.head), limit)
            break
    return visible(text if len(text) <= limit else text[:limit] + "\n\u2026")


def split_text(test: SignTest) -> tuple[str, str]:
    """Problems ahead, behind and tied, and the p value of that split; dashes if no problem was measured."""
    *counts, p_value = split_cells(test)
    return (DASH if DASH in counts else ", ".join(counts)), p_value


def _difference_sentence(base: Score, scores: EvaluationResults) -> str:
    """The paired difference in pass@k for the first k, and for others in which one of the two is clearly ahead."""
    assert base.ssd_gain is not None, "scores of the base have the paired difference to SSD"
    first = base.ssd_gain[scores.ks[0]]
    if not first.is_known:
        return "The paired difference is not measured: grading failed on every problem for one of the two."
    if base.num_problems == 1:
        return f"The difference is {points(first).value} points on one problem, from which nothing follows."
    sentences = [f"The paired difference is {_gain_text(first, scores)}"]
    for k in scores.ks[1:]:
        gain = base.ssd_gain[k]
        if gain.is_known and _winner(gain):
            sentences.append(f"In pass@{k} it is {_gain_text(gain, scores)}")
    return " ".join(sentences)


def _gain_text(gain: Estimate, scores: EvaluationResults) -> str:
    written = points(gain)
    interval = written.interval.replace(" ", "\N{NO-BREAK SPACE}")
    winner = _winner(gain)
    result = f"{winner} is ahead" if winner else f"in pass@{scores.ks[0]} this run does not tell the two apart"
    return f"{written.value} points, with a {confidence_text(scores.confidence)} interval from {interval}: {result}."


def _winner(gain: Estimate) -> str:
    """Who is ahead; empty if the interval contains zero."""
    if gain.low <= 0 <= gain.high:
        return ""
    return "SSD" if gain.value > 0 else "the base"
