"""Computes the results of an evaluation from its scores.

Notes on selection bias and on the effective temperature:
- On the half that chose it, a best cell looks better than it is. So each model's best cell is shown on both halves,
  next to the score that choosing and reporting on the same problems would have given. The halves contain different
  problems, so the means over all cells are shown too: what the best cell loses beyond their difference is due to the
  choice.
- A model that learned from samples drawn at ``T_train`` is decoded at ``T_eval``. The two multiply, ``T_eff = T_train x
  T_eval``, as far as training reaches p ** (1 / T_train) on the tokens that the training decode keeps (arXiv
  2604.01193, which finds that T_eff alone explains much of its sweep of the two, with a peak near 1.2). The base was
  not trained on such samples, so its T_eff is ``T_eval``. T_eff does not cover truncation, so only settings with the
  same top-k and top-p are comparable.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from megatron_ssd.config.generation import SamplingConfig, SamplingParams
from megatron_ssd.evaluation.claims import RULE, check_claims
from megatron_ssd.evaluation.diversity import Diversity
from megatron_ssd.evaluation.grid import Measurements, difficulty_of
from megatron_ssd.evaluation.results import (
    BestCell,
    EffectivePoint,
    EffectiveTemperature,
    EvaluationResults,
    GridCell,
    Half,
    ModelName,
    NaiveChoice,
    SampleCounts,
    Score,
    SettingScores,
    SsdGain,
)
from megatron_ssd.grading.metrics import Bootstrap, Estimate, Mask, Scores, no_code_causes, sign_test
from megatron_ssd.grading.references import is_flawed
from megatron_ssd.problems.benchmarks import Benchmark

_TITLES = {
    "base_default": "base at its default decode",
    "base_train": "base at the training decode",
    "base_best": "base at its best",
    "ssd_best": "SSD at its best",
}


def summarise(
    found: Measurements,
    sampling: SamplingConfig,
    *,
    benchmark: Benchmark,
    finish_reasons: Mapping[ModelName, Mapping[str, Mapping[str, int]]],
    diversity: Mapping[ModelName, Mapping[str, Diversity]],
    engine: dict[str, str],
    sandbox: str,
    prompt_opens_thinking: bool,
) -> EvaluationResults:
    """All results.

    Args:
        found: all scores.
        benchmark: what was measured.
        sampling: names the settings outside the grid.
        finish_reasons: model -> label -> finish reason -> responses.
        diversity: model -> label -> distinct programs.
        engine: name and version.
        sandbox: the kind of sandbox.
        prompt_opens_thinking: whether prompts end inside a thinking block.
    """
    best = {model: found.best(model) for model in found.verdicts}
    return EvaluationResults(
        benchmark=benchmark.name,
        format=benchmark.format,
        headline=_headline(found, sampling),
        grid=tuple(
            _cell(found, model, cell, sampling, chosen=cell == best[model])
            for model in found.verdicts
            for cell in found.cells
        ),
        beside_grid=beside_grid(found, sampling),
        best_of_grid=tuple(best_of_grid(found, model) for model in found.verdicts),
        effective_temperature=_effective_temperature(found, sampling),
        claims=tuple(check_claims(found, sampling)) if {"base", "ssd"} <= found.verdicts.keys() else (),
        claim_rule=RULE,
        settings={
            model: {
                label: _setting(found, model, label, finish_reasons[model][label], diversity[model][label])
                for label in by_label
            }
            for model, by_label in found.verdicts.items()
        },
        confidence=found.bootstrap.confidence,
        bootstrap_samples=found.bootstrap.num_resamples,
        num_problems=len(found.problems),
        selection_problems=int(found.halves.selection.sum()),
        num_samples=found.num_samples,
        difficulties={problem.id: difficulty_of(problem) for problem in found.problems},
        engine=engine,
        sandbox=sandbox,
        prompt_opens_thinking=prompt_opens_thinking,
        errata=benchmark.errata,
        flawed={
            verdict.problem_id: verdict.detail
            for by_label in found.verdicts.values()
            for verdicts in by_label.values()
            for verdict in verdicts
            if is_flawed(verdict)
        },
    )


def beside_grid(found: Measurements, sampling: SamplingConfig) -> GridCell | None:
    """The base at the training decode; None if that is a cell of the grid, or if there is no base.

    It cannot become the best cell: base and tuned model choose from the same cells.
    """
    if sampling.train in found.cells or "base" not in found.verdicts:
        return None
    return _cell(found, "base", sampling.train, sampling, chosen=False)


def best_of_grid(found: Measurements, model: ModelName) -> BestCell:
    """The chosen cell on each half, the mean over the grid on each half, and the score of a naive choice."""
    best, naive = found.best(model), found.best(model, found.all_problems)
    halves: dict[Half, Mask] = {"selection": found.halves.selection, "report": found.halves.report}
    return BestCell(
        model=model,
        decoding=best.label,
        num_cells=len(found.cells),
        selection=found.pass_at_1(model, best, halves["selection"]),
        report=found.pass_at_1(model, best, halves["report"]),
        grid_mean={name: _grid_mean(found, model, half) for name, half in halves.items()},
        on_all_problems=NaiveChoice(
            decoding=naive.label, **dataclasses.asdict(found.pass_at_1(model, naive, found.all_problems))
        ),
    )


def _headline(found: Measurements, sampling: SamplingConfig) -> tuple[Score, ...]:
    """A score for each named setting of the models that were measured."""
    settings: dict[str, tuple[ModelName, SamplingParams]] = {}
    if "base" in found.verdicts:
        settings["base_default"] = "base", sampling.default
        settings["base_train"] = "base", sampling.train
        settings["base_best"] = "base", found.best("base")
    if "ssd" in found.verdicts:
        settings["ssd_best"] = "ssd", found.best("ssd")
    return tuple(_score(found, key, model, setting.label) for key, (model, setting) in settings.items())


def _score(found: Measurements, key: str, model: ModelName, label: str) -> Score:
    report = found.halves.report
    gains = None
    if model == "base" and "ssd" in found.verdicts:
        best = found.best("ssd").label
        gains = {
            k: _gain(found.bootstrap, found.scores("ssd", best, k)[report], found.scores(model, label, k)[report])
            for k in found.ks
        }
    return Score(
        key=key,
        title=_TITLES[key],
        model=model,
        decoding=label,
        num_problems=int(report.sum()),
        num_samples=found.num_samples,
        overall=found.by_k(model, label, report),
        base_tests=found.base_tests_by_k(model, label, report),
        by_difficulty=found.by_difficulty(model, label, report),
        problems_by_difficulty={
            name: int((mask & report).sum()) for name, mask in found.difficulties.items() if (mask & report).any()
        },
        ssd_gain=gains,
    )


def _gain(bootstrap: Bootstrap, ours: Scores, theirs: Scores) -> SsdGain:
    difference = bootstrap.difference(ours, theirs)
    return SsdGain(**dataclasses.asdict(difference), sign_test=sign_test(ours, theirs))


def _cell(
    found: Measurements, model: ModelName, cell: SamplingParams, sampling: SamplingConfig, *, chosen: bool
) -> GridCell:
    score = found.pass_at_1(model, cell, found.halves.selection)
    return GridCell(
        **_decode_setting(model, cell),
        pass_at_1=score.value if score.is_known else None,
        chosen=chosen,
        training=cell == sampling.train,
    )


def _effective_temperature(found: Measurements, sampling: SamplingConfig) -> EffectiveTemperature:
    """pass@1 on the reporting half of every model and cell, with its T_eff."""
    train = {"base": 1.0, "ssd": sampling.train.temperature}
    return EffectiveTemperature(
        train_temperature=sampling.train.temperature,
        points=tuple(
            EffectivePoint(
                **_decode_setting(model, cell),
                effective_temperature=train[model] * cell.temperature,
                **dataclasses.asdict(found.pass_at_1(model, cell, found.halves.report)),
            )
            for model in found.verdicts
            for cell in found.cells
        ),
    )


def _grid_mean(found: Measurements, model: ModelName, where: Mask) -> float | None:
    """The mean over the cells that were measured on the problems of ``where`` [P]; None if none was."""
    scores: list[Estimate] = [found.pass_at_1(model, cell, where) for cell in found.cells]
    known = [score.value for score in scores if score.is_known]
    return fmean(known) if known else None


def _setting(
    found: Measurements, model: ModelName, label: str, finish_reasons: Mapping[str, int], diversity: Diversity
) -> SettingScores:
    verdicts = found.verdicts[model][label]
    outcomes = Counter[str](verdict.status for verdict in verdicts)
    return SettingScores(
        overall=found.by_k(model, label, found.all_problems),
        base_tests=found.base_tests_by_k(model, label, found.all_problems),
        by_difficulty=found.by_difficulty(model, label, found.all_problems),
        n=SampleCounts(problems=len(found.problems), samples=len(verdicts), left_out=outcomes["infrastructure_error"]),
        finish_reasons=dict(finish_reasons),
        outcomes=dict(outcomes.most_common()),
        no_code=outcomes["no_code"] / len(verdicts),
        no_code_causes=no_code_causes(verdicts),
        diversity=diversity,
    )


def _decode_setting(model: ModelName, cell: SamplingParams) -> dict[str, Any]:
    return {"model": model, "decoding": cell.label, **dataclasses.asdict(cell)}
