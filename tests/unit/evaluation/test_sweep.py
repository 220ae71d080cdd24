"""What ``summary.json`` says of the decode settings: the grid, what choosing adds, scores over T_eff."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest

from megatron_ssd.config.evaluation import EvaluationConfig
from megatron_ssd.config.generation import SamplingConfig, SamplingParams
from megatron_ssd.evaluation import sweep
from megatron_ssd.evaluation.claims import judge_claims
from megatron_ssd.evaluation.diversity import Diversity
from megatron_ssd.evaluation.grid import ModelName, grid_cells, settings_of
from megatron_ssd.evaluation.measurements import Measurements
from megatron_ssd.evaluation.summary import summarise, table
from megatron_ssd.grading.metrics import Bootstrap
from megatron_ssd.report.scores import read_scores
from megatron_ssd.schema import Verdict
from tests.helpers.report_run import NO_ERRATA
from tests.unit.evaluation.test_grid import problems

CONFIG = EvaluationConfig(temperatures=(0.5, 1.0), top_ks=(10, -1), top_ps=(0.8, 1.0))
TRAIN = SamplingParams(temperature=1.5, top_k=20, top_p=0.8)
SAMPLING = SamplingConfig(train=TRAIN, eval=SamplingParams(temperature=1.0, top_k=10, top_p=0.8))
MODELS: tuple[ModelName, ...] = ("base", "ssd")


def measure(
    rate: Callable[[ModelName, SamplingParams], float],
    *,
    num_problems: int = 40,
    num_samples: int = 4,
    seed: int = 0,
    models: tuple[ModelName, ...] = MODELS,
    sampling: SamplingConfig = SAMPLING,
) -> Measurements:
    """Measurements in which a model passes ``rate`` of its samples, by chance."""
    rng, rows = np.random.default_rng(seed), problems(num_problems)

    def verdicts(model: ModelName, setting: SamplingParams) -> list[Verdict]:
        passed = rng.random((num_problems, num_samples)) < rate(model, setting)
        return [
            Verdict(problem_id=row.id, sample_index=i, status="passed" if passed[n, i] else "wrong_answer")
            for n, row in enumerate(rows)
            for i in range(num_samples)
        ]

    return Measurements(
        problems=rows, cells=grid_cells(CONFIG, sampling), ks=(1,), num_samples=num_samples,
        bootstrap=Bootstrap(num_resamples=100),
        verdicts={m: {s.label: verdicts(m, s) for s in settings_of(m, CONFIG, sampling)} for m in models},
    )  # fmt: skip


def summary_of(found: Measurements, sampling: SamplingConfig = SAMPLING) -> dict:
    reasons = {model: {label: {"stop": 1} for label in by_label} for model, by_label in found.verdicts.items()}
    same = Diversity(distinct=1.0, distinct_passing=1.0, num_solved=1)
    diversity = {model: dict.fromkeys(by_label, same) for model, by_label in found.verdicts.items()}
    summary = summarise(found, sampling, finish_reasons=reasons, diversity=diversity, facts={"errata": NO_ERRATA})
    return json.loads(json.dumps(summary, allow_nan=False))


def test_every_cell_names_its_top_k_and_the_training_decode_stands_beside():
    summary = summary_of(measure(lambda model, cell: 0.5))
    assert [cell["top_k"] for cell in summary["grid"][:4]] == [10, 10, -1, -1]
    assert len(summary["grid"]) == 16
    assert sum(cell["chosen"] for cell in summary["grid"]) == 2
    assert not any(cell["training"] for cell in summary["grid"])
    beside = summary["beside_grid"]
    assert (beside["model"], beside["decoding"], beside["training"], beside["chosen"]) == (
        "base", "T1.5-k20-p0.8", True, False,
    )  # fmt: skip
    assert 0.3 < beside["pass_at_1"] < 0.7


def test_a_training_decode_of_the_grid_is_marked_in_it():
    sampling = dataclasses.replace(SAMPLING, train=SamplingParams(temperature=1.0, top_k=-1))
    summary = summary_of(measure(lambda model, cell: 0.5, sampling=sampling), sampling)
    assert summary["beside_grid"] is None
    marked = [(cell["model"], cell["decoding"]) for cell in summary["grid"] if cell["training"]]
    assert marked == [("base", "T1-k-1-p1"), ("ssd", "T1-k-1-p1")]


def test_what_stands_beside_the_grid_is_no_candidate():
    found = measure(lambda model, cell: 0.9 if cell == TRAIN else 0.2)
    assert found.best("base") in found.cells
    assert sweep.beside_grid(found, SAMPLING)["pass_at_1"] > 0.8  # type: ignore[index]


def test_both_halves_of_the_best_cell_are_counted_by_hand():
    found = measure(lambda model, cell: 0.8 if cell.top_k == -1 and cell.temperature == 1.0 else 0.2)
    for row in summary_of(found)["best_of_grid"]:
        chosen = next(cell for cell in found.cells if cell.label == row["decoding"])
        assert (chosen.temperature, chosen.top_k) == (1.0, -1)
        for name in ("selection", "report"):
            half = {p.id for p, inside in zip(found.problems, getattr(found.halves, name), strict=True) if inside}
            rows = {
                cell.label: [v.passed for v in found.verdicts[row["model"]][cell.label] if v.problem_id in half]
                for cell in found.cells
            }
            assert row[name]["value"] == pytest.approx(np.mean(rows[chosen.label]))
            assert row["grid_mean"][name] == pytest.approx(np.mean(list(rows.values())))
        every = [[v.passed for v in found.verdicts[row["model"]][cell.label]] for cell in found.cells]
        assert row["on_all_problems"]["value"] == pytest.approx(max(map(np.mean, every)))
        assert row["num_cells"] == 8


def test_the_best_of_equal_cells_looks_better_only_where_it_was_chosen():
    rows = [sweep.best_of_grid(measure(lambda model, cell: 0.5, seed=seed, models=("base",)))[0] for seed in range(60)]
    flattery = {name: np.mean([row[name]["value"] for row in rows]) - 0.5 for name in ("selection", "report")}
    naive = np.mean([row["on_all_problems"]["value"] for row in rows]) - 0.5
    assert flattery["selection"] > 0.05  # the best of 8 means of 80 coins: about 1.4 of their errors of 0.056
    assert abs(flattery["report"]) < 0.02
    assert 0.03 < naive < flattery["selection"]


def test_a_judge_that_failed_on_the_reporting_half_leaves_no_mean_there():
    found = measure(lambda model, cell: 0.5, models=("base",))
    report = {problem.id for problem, inside in zip(found.problems, found.halves.report, strict=True) if inside}
    for label, rows in found.verdicts["base"].items():
        found.verdicts["base"][label] = [  # type: ignore[index]
            dataclasses.replace(row, status="infrastructure_error" if row.problem_id in report else row.status)
            for row in rows
        ]
    row = sweep.best_of_grid(found)[0]
    assert row["grid_mean"]["report"] is None
    assert 0.4 < row["grid_mean"]["selection"] < 0.6


def test_temperatures_multiply_for_ssd_alone():
    found = measure(lambda model, cell: 0.5)
    effective = summary_of(found)["effective_temperature"]
    assert effective["train_temperature"] == 1.5
    assert len(effective["points"]) == 16
    for point in effective["points"]:
        factor = 1.5 if point["model"] == "ssd" else 1.0
        assert point["effective_temperature"] == pytest.approx(factor * point["temperature"])
        scores = found.scores(point["model"], point["decoding"], 1)[found.halves.report]
        assert point["value"] == pytest.approx(scores.mean())
        assert point["low"] <= point["value"] <= point["high"]


def test_a_base_alone_has_its_sweep():
    summary = summary_of(measure(lambda model, cell: 0.5, models=("base",)))
    assert [row["model"] for row in summary["best_of_grid"]] == ["base"]
    assert {point["model"] for point in summary["effective_temperature"]["points"]} == {"base"}


def test_claims_and_table_name_settings_of_several_top_ks():
    found = measure(lambda model, cell: 0.3 if model == "base" else 0.5 + 0.2 * (cell.top_k == -1))
    summary = summary_of(found)
    heat = next(claim for claim in judge_claims(found, SAMPLING) if "hot decoding" in claim.text)
    assert "T1-k-1-p1" in heat.evidence
    assert "-k-1-" in table(summary)
    assert any("of 8 cells" in claim["evidence"] for claim in summary["claims"])


def test_the_report_reads_every_part(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(summary_of(measure(lambda model, cell: 0.5))))
    found = read_scores(path).sweep
    assert {cell.top_k for cell in found.grid} == {10, -1}
    assert found.beside_grid is not None
    assert found.beside_grid.decoding == TRAIN.label
    assert [best.num_cells for best in found.best_cells] == [8, 8]
    assert len(found.effective) == 16
    assert not any(cell.further for cell in found.grid)
