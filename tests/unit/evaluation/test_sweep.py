"""Tests for the part of ``summary.json`` on decode settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from msgspec.structs import replace

from megatron_ssd.config.evaluation import EvaluationConfig
from megatron_ssd.config.generation import SamplingConfig, SamplingParams
from megatron_ssd.evaluation.claims import check_claims
from megatron_ssd.evaluation.grid import Measurements, grid_cells, settings_of
from megatron_ssd.evaluation.results import ModelName
from megatron_ssd.evaluation.summary import beside_grid, best_of_grid
from megatron_ssd.evaluation.tables import score_tables
from tests.helpers import measured
from tests.helpers.measured import MODELS, graded_problems, results_of, summary_of

CONFIG = EvaluationConfig(temperatures=(0.5, 1.0), top_ks=(10, -1), top_ps=(0.8, 1.0))
TRAIN = SamplingParams(temperature=1.5, top_k=20, top_p=0.8)
SAMPLING = SamplingConfig(train=TRAIN, eval=SamplingParams(temperature=1.0, top_k=10, top_p=0.8))


def measure(
    rate: Callable[[ModelName, SamplingParams], float],
    *,
    seed: int = 0,
    models: tuple[ModelName, ...] = MODELS,
    sampling: SamplingConfig = SAMPLING,
) -> Measurements:
    return measured.measure(
        lambda model, cell, _: rate(model, cell),
        problems=graded_problems(40),
        cells=grid_cells(CONFIG, sampling),
        settings=lambda model: settings_of(model, CONFIG, sampling),
        num_samples=4,
        ks=(1,),
        num_resamples=100,
        models=models,
        seed=seed,
    )


def test_every_cell_names_its_top_k_and_the_training_decode_is_separate():
    summary = summary_of(measure(lambda model, cell: 0.5), SAMPLING)
    assert [cell["top_k"] for cell in summary["grid"][:4]] == [10, 10, -1, -1]
    assert len(summary["grid"]) == 16
    assert sum(cell["chosen"] for cell in summary["grid"]) == 2
    assert not any(cell["training"] for cell in summary["grid"])
    beside = summary["beside_grid"]
    assert (beside["model"], beside["decoding"], beside["training"], beside["chosen"]) == (
        "base", "T1.5-k20-p0.8", True, False,
    )  # fmt: skip
    assert 0.3 < beside["pass_at_1"] < 0.7


def test_a_training_decode_within_the_grid_is_marked():
    sampling = dataclasses.replace(SAMPLING, train=SamplingParams(temperature=1.0, top_k=-1))
    summary = summary_of(measure(lambda model, cell: 0.5, sampling=sampling), sampling)
    assert summary["beside_grid"] is None
    marked = [(cell["model"], cell["decoding"]) for cell in summary["grid"] if cell["training"]]
    assert marked == [("base", "T1-k-1-p1"), ("ssd", "T1-k-1-p1")]


def test_settings_outside_the_grid_are_not_candidates():
    found = measure(lambda model, cell: 0.9 if cell == TRAIN else 0.2)
    assert found.best("base") in found.cells
    assert beside_grid(found, SAMPLING).pass_at_1 > 0.8  # type: ignore[union-attr, operator]


def test_both_halves_of_the_best_cell_equal_a_hand_computation():
    found = measure(lambda model, cell: 0.8 if cell.top_k == -1 and cell.temperature == 1.0 else 0.2)
    for best in summary_of(found, SAMPLING)["best_of_grid"]:
        chosen = next(cell for cell in found.cells if cell.label == best["decoding"])
        assert (chosen.temperature, chosen.top_k) == (1.0, -1)
        for name in ("selection", "report"):
            half = {p.id for p, inside in zip(found.problems, getattr(found.halves, name), strict=True) if inside}
            passed = {
                cell.label: [v.passed for v in found.verdicts[best["model"]][cell.label] if v.problem_id in half]
                for cell in found.cells
            }
            assert best[name]["value"] == pytest.approx(np.mean(passed[chosen.label]))
            assert best["grid_mean"][name] == pytest.approx(np.mean(list(passed.values())))
        every = [[v.passed for v in found.verdicts[best["model"]][cell.label]] for cell in found.cells]
        assert best["on_all_problems"]["value"] == pytest.approx(max(map(np.mean, every)))
        assert best["num_cells"] == 8


def test_the_best_of_equal_cells_looks_better_only_on_the_selection_half():
    found = [measure(lambda model, cell: 0.5, seed=seed, models=("base",)) for seed in range(60)]
    best = [best_of_grid(one, "base") for one in found]
    bias = {name: np.mean([getattr(one, name).value for one in best]) - 0.5 for name in ("selection", "report")}
    naive = np.mean([one.on_all_problems.value for one in best]) - 0.5
    # The largest of 8 means of 80 coin tosses is about 1.4 standard errors, of 0.056 each, above the true mean.
    assert bias["selection"] > 0.05
    assert abs(bias["report"]) < 0.02
    assert 0.03 < naive < bias["selection"]


def test_a_reporting_half_of_infrastructure_errors_has_no_mean():
    found = measure(lambda model, cell: 0.5, models=("base",))
    report = {problem.id for problem, inside in zip(found.problems, found.halves.report, strict=True) if inside}
    for label, verdicts in found.verdicts["base"].items():
        found.verdicts["base"][label] = [  # type: ignore[index]
            replace(v, status="infrastructure_error" if v.problem_id in report else v.status) for v in verdicts
        ]
    means = best_of_grid(found, "base").grid_mean
    assert means["report"] is None
    assert means["selection"] is not None
    assert 0.4 < means["selection"] < 0.6


def test_the_effective_temperature_is_a_product_only_for_ssd():
    found = measure(lambda model, cell: 0.5)
    effective = summary_of(found, SAMPLING)["effective_temperature"]
    assert effective["train_temperature"] == 1.5
    assert len(effective["points"]) == 16
    for point in effective["points"]:
        factor = 1.5 if point["model"] == "ssd" else 1.0
        assert point["effective_temperature"] == pytest.approx(factor * point["temperature"])
        scores = found.scores(point["model"], point["decoding"], 1)[found.halves.report]
        assert point["value"] == pytest.approx(scores.mean())
        assert point["low"] <= point["value"] <= point["high"]


def test_a_base_without_a_tuned_model_has_a_best_cell_and_points():
    summary = summary_of(measure(lambda model, cell: 0.5, models=("base",)), SAMPLING)
    assert [best["model"] for best in summary["best_of_grid"]] == ["base"]
    assert {point["model"] for point in summary["effective_temperature"]["points"]} == {"base"}


def test_claims_and_table_name_the_top_k_if_there_are_several():
    found = measure(lambda model, cell: 0.3 if model == "base" else 0.5 + 0.2 * (cell.top_k == -1))
    heat = next(claim for claim in check_claims(found, SAMPLING) if "high temperature than" in claim.text)
    assert "T1-k-1-p1" in heat.evidence
    results = results_of(found, SAMPLING)
    assert "-k-1-" in score_tables(results)
    assert any("of 8 cells" in claim.evidence for claim in results.claims)
