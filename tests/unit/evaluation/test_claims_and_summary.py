"""Tests for the summary of an evaluation with its claims."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from megatron_ssd.config.evaluation import EvaluationConfig
from megatron_ssd.config.generation import SamplingConfig, SamplingParams
from megatron_ssd.evaluation.claims import check_claims, status_of
from megatron_ssd.evaluation.grid import Measurements, grid_cells, settings_of
from megatron_ssd.evaluation.results import EvaluationResults, ModelName, from_json
from megatron_ssd.evaluation.tables import claim_lines, score_tables
from megatron_ssd.formatting import MINUS
from megatron_ssd.grading.metrics import Bootstrap, Estimate
from megatron_ssd.grading.references import FLAWED
from megatron_ssd.schema import Problem, TestCase, Verdict, VerdictStatus
from tests.helpers import measured
from tests.helpers.measured import MODELS, SAMPLING, graded_problems, results_of, summary_of

CONFIG = EvaluationConfig(temperatures=(1.0, 2.0), top_ps=(0.6, 0.8))
N = 30


def measure(
    rate: Callable[[ModelName, SamplingParams, Problem], float], *, models: tuple[ModelName, ...] = MODELS
) -> Measurements:
    return measured.measure(
        rate,
        problems=graded_problems(90),
        cells=grid_cells(CONFIG, SAMPLING),
        settings=lambda model: settings_of(model, CONFIG, SAMPLING),
        num_samples=N,
        num_resamples=1000,
        models=models,
    )


def statuses(found: Measurements) -> dict[str, str]:
    """The beginning of each claim -> its status."""
    return {claim.text.split(":")[0].split(" (")[0]: claim.status for claim in check_claims(found, SAMPLING)}


@pytest.mark.parametrize(
    ("low", "high", "status"),
    [(0.01, 0.1, "shown"), (-0.1, -0.01, "not shown"), (-0.1, 0.1, "unclear"), (0.0, 0.1, "unclear"),
     (float("nan"), float("nan"), "unclear")],
)  # fmt: skip
def test_the_status_of_a_claim_depends_on_its_interval(low: float, high: float, status: str):
    difference = Estimate(value=0.0, low=low, high=high, num_problems=3)
    above = Estimate(value=0.2, low=0.1, high=0.3, num_problems=3)
    assert status_of(difference) == status_of(difference, above) == status_of(above, difference) == status


def test_a_better_model_shows_all_claims():
    ease = {"easy": 0.0, "medium": 0.1, "hard": 0.2}

    def rate(model: ModelName, decoding: SamplingParams, problem: Problem) -> float:
        heat = 0.08 if decoding.temperature == 2.0 else 0.0
        return 0.08 - heat if model == "base" else 0.2 + ease[str(problem.difficulty)]

    assert set(statuses(measure(rate)).values()) == {"shown"}


def test_a_worse_model_shows_no_claim():
    def rate(model: ModelName, decoding: SamplingParams, problem: Problem) -> float:
        heat = 0.3 if decoding.temperature == 2.0 and model == "ssd" else 0.0
        return 0.6 if model == "base" else 0.4 - heat

    found = statuses(measure(rate))
    assert "shown" not in found.values()
    assert found["SSD solves more than its base at the default decode of the base."] == "not shown"


def test_a_smaller_loss_is_not_a_larger_gain():
    # Both models are near 1 in pass@5, so the loss is smaller there, but it is not a gain.
    found = statuses(measure(lambda model, decoding, problem: 0.6 if model == "base" else 0.4))
    assert found["SSD gains more in pass@5 than in pass@1"] == "not shown"


def test_equal_models_are_unclear():
    found = statuses(measure(lambda model, decoding, problem: 0.4))
    assert found["With the same decode setting for both, SSD solves more than its base."] == "unclear"


def test_only_the_noisy_regime_has_the_claim_about_it():
    found = measure(lambda model, decoding, problem: 0.4)
    noisy = dataclasses.replace(SAMPLING, train=SamplingParams(temperature=2.0))
    for verdicts in found.verdicts.values():
        verdicts[noisy.train.label] = next(iter(verdicts.values()))  # type: ignore[index]
    assert not any("without truncation" in claim.text for claim in check_claims(found, SAMPLING))
    assert any("without truncation" in claim.text for claim in check_claims(found, noisy))


def evidence(found: Measurements, beginning: str) -> str:
    """The evidence of the claim that starts with ``beginning``."""
    return next(claim.evidence for claim in check_claims(found, SAMPLING) if claim.text.startswith(beginning))


def means_of_grid(found: Measurements, model: ModelName) -> list[float]:
    """pass@1 of each cell on the reporting half, in percent."""
    report = found.halves.report
    return [100 * float(found.scores(model, cell.label, 1)[report].mean()) for cell in found.cells]


def test_a_gain_from_cells_where_the_base_degrades_is_marked():
    def rate(model: ModelName, decoding: SamplingParams, problem: Problem) -> float:
        return 0.38 if model == "ssd" else 0.02 if decoding.temperature == 2.0 else 0.42

    found = measure(rate)
    text = evidence(found, "With the same decode setting")
    assert statuses(found)["With the same decode setting for both, SSD solves more than its base."] == "shown"
    gains = [s - b for s, b in zip(means_of_grid(found, "ssd"), means_of_grid(found, "base"), strict=True)]
    assert f"; ahead in 2 of 4 cells, by {MINUS}{-min(gains):.1f} to +{max(gains):.1f}; " in text
    assert text.endswith(
        f"mean +{sum(gains[2:]) / 2:.1f} in the 2 cells where the base has less than half of its best, "
        f"{MINUS}{-sum(gains[:2]) / 2:.1f} in the other 2"
    )


def test_a_gain_in_every_cell_is_not_marked():
    text = evidence(measure(lambda model, *_: 0.5 if model == "ssd" else 0.4), "With the same decode setting")
    assert "ahead in 4 of 4 cells, by +" in text
    assert "less than half" not in text


def test_the_gain_in_pass_at_5_is_given_with_the_best_score_of_each_model():
    def rate(model: ModelName, decoding: SamplingParams, problem: Problem) -> float:
        return 0.3 if model == "ssd" else 0.4 if decoding.top_p == 0.6 else 0.1

    found = measure(rate)
    text = evidence(found, "SSD gains more in pass@5")
    report = found.halves.report
    ssd, base = (
        f"{100 * float(found.scores(model, found.best(model).label, 5)[report].mean()):.1f} % ({name})"
        for model, name in (("ssd", "SSD"), ("base", "base"))
    )
    assert text.endswith(f"With each at its best, pass@5 is {ssd} against {base}")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_difficulties_are_compared_only_if_the_reporting_half_has_each(number: int):
    """Of an odd number of hard problems, the selection half gets one more than the reporting half."""
    found = measure(lambda model, decoding, problem: 0.4)
    easy = [problem for problem in found.problems if problem.difficulty == "easy"]
    hard = [problem for problem in found.problems if problem.difficulty == "hard"][: 2 * number]
    kept = {problem.id for problem in (*easy, *hard)}
    few = dataclasses.replace(
        found,
        problems=[*easy, *hard],
        verdicts={
            model: {label: [v for v in verdicts if v.problem_id in kept] for label, verdicts in by_label.items()}
            for model, by_label in found.verdicts.items()
        },
    )
    texts = [claim.text for claim in check_claims(few, SAMPLING)]
    assert any("hard problems" in text for text in texts) == (number == 2)


def test_an_interval_of_one_problem_is_unclear():
    assert status_of(Estimate(value=0.2, low=0.2, high=0.2, num_problems=1)) == "unclear"


def test_the_headline_is_measured_on_the_reporting_half():
    found = measure(lambda model, decoding, problem: 0.3 if model == "base" else 0.5)
    scores = {score["key"]: score for score in summary_of(found)["headline"]}
    assert list(scores) == ["base_default", "base_train", "base_best", "ssd_best"]
    report = {p.id for p, chosen in zip(found.problems, found.halves.report, strict=True) if chosen}
    counted = [v.passed for v in found.verdicts["base"][SAMPLING.default.label] if v.problem_id in report]
    default = scores["base_default"]
    assert default["overall"]["1"]["value"] == pytest.approx(sum(counted) / len(counted))
    assert default["overall"]["1"]["low"] < default["overall"]["1"]["value"] < default["overall"]["1"]["high"]
    assert default["num_problems"] == len(report) == 45
    assert default["problems_by_difficulty"] == {"easy": 15, "medium": 15, "hard": 15}
    gain = scores["ssd_best"]["overall"]["5"]["value"] - default["overall"]["5"]["value"]
    assert default["ssd_gain"]["5"]["value"] == pytest.approx(gain)
    assert scores["ssd_best"]["ssd_gain"] is None
    by_problem = {model: Counter(v.problem_id for v in found.verdicts[model][scores[key]["decoding"]] if v.passed)
                  for model, key in (("base", "base_default"), ("ssd", "ssd_best"))}  # fmt: skip
    split = Counter(np.sign(by_problem["ssd"][p] - by_problem["base"][p]) for p in report)
    test = default["ssd_gain"]["1"]["sign_test"]
    assert (test["ahead"], test["behind"], test["tied"]) == (split[1], split[-1], split[0])
    assert test["ahead"] > test["behind"]
    assert test["p_value"] < 0.001


def test_one_cell_per_model_is_marked_as_chosen():
    found = measure(lambda model, decoding, problem: 0.2 if decoding.temperature == 2.0 else 0.6)
    cells = summary_of(found)["grid"]

    chosen = [cell for cell in cells if cell["chosen"]]
    assert [(cell["model"], cell["temperature"]) for cell in chosen] == [("base", 1.0), ("ssd", 1.0)]
    assert len(cells) == 8


def test_every_setting_is_written_in_full():
    found = measure(lambda model, decoding, problem: 0.5)
    found.verdicts["base"]["T1-k20-p0.6"][0] = Verdict(  # type: ignore[index]
        problem_id="p0", sample_index=0, status="infrastructure_error"
    )
    found.verdicts["base"]["T1-k20-p0.6"][1] = Verdict(  # type: ignore[index]
        problem_id="p0", sample_index=1, status="no_code", detail="no fence"
    )
    setting = summary_of(found)["settings"]["base"]["T1-k20-p0.6"]
    assert setting["n"] == {"problems": 90, "samples": 2700, "left_out": 1}
    assert setting["no_code"] == pytest.approx(1 / 2700)
    assert setting["no_code_causes"] == {"no fence": 1}
    assert setting["finish_reasons"] == {"stop": 890, "length": 10}
    assert set(setting["by_difficulty"]) == {"easy", "medium", "hard"}
    assert setting["diversity"] == {"distinct": 12.5, "distinct_passing": 4.0, "num_solved": 80}


def test_a_base_without_a_tuned_model_has_scores_but_no_claims():
    results = results_of(measure(lambda model, decoding, problem: 0.5, models=("base",)))
    assert [score.key for score in results.headline] == ["base_default", "base_train", "base_best"]
    assert not results.claims
    assert "base at its best" in score_tables(results)


def test_the_tables_contain_every_score_and_claim():
    results = results_of(measure(lambda model, decoding, problem: 0.5))
    text = score_tables(results)
    assert "45 problems x 30 programs, the half on which nothing was chosen; 95 % intervals" in text
    for score in results.headline:
        assert score.title in text
    for claim in results.claims:
        assert claim.text in claim_lines(results)


def test_the_tables_fit_a_terminal():
    wide = dataclasses.replace(measure(lambda model, decoding, problem: 0.5), ks=(1, 5, 10, 20))
    text = score_tables(results_of(wide))
    tables = text[: text.index("per cent of 45 problems")]
    assert all(f"pass@{k}" in tables for k in wide.ks)
    assert max(map(len, tables.splitlines())) <= 125


def test_the_score_of_problems_without_verdicts_is_null():
    found = measure(lambda model, decoding, problem: 0.5)
    lost = {p.id for p in found.problems if p.difficulty == "hard"}
    for by_label in found.verdicts.values():
        for label, verdicts in by_label.items():
            by_label[label] = [  # type: ignore[index]
                replace(v, status="infrastructure_error") if v.problem_id in lost else v for v in verdicts
            ]
    summary = summary_of(found)
    assert summary["headline"][0]["by_difficulty"]["hard"]["1"] == {
        "value": None,
        "low": None,
        "high": None,
        "num_problems": 0,
    }


def test_base_tests_have_a_score_of_their_own_and_flawed_problems_are_named():
    two = (TestCase(input="[[1]]", output=""), TestCase(input="[[2]]", output=""))
    problems = [
        Problem(id=f"HumanEval/{n}", source="humaneval_plus", statement="", form="evalplus", tests=two)
        for n in range(3)
    ]
    outcomes: list[tuple[VerdictStatus, str, str]] = [
        ("wrong_answer", ".W", ""), ("passed", "..", ""), ("infrastructure_error", "", f"{FLAWED} (it raises)"),
    ]  # fmt: skip
    verdicts = [
        Verdict(problem_id=problem.id, sample_index=0, status=status, by_test=by_test, detail=detail)
        for problem, (status, by_test, detail) in zip(problems, outcomes, strict=True)
    ]
    cell = SamplingParams(temperature=1.0)
    found = Measurements(problems=problems, cells=[cell], verdicts={"base": {cell.label: verdicts}}, ks=(1,),
                         num_samples=1, bootstrap=Bootstrap(num_resamples=20))  # fmt: skip
    both = SamplingConfig(train=cell, eval=cell, default=cell)
    results = results_of(found, both)
    scores = results.settings["base"][cell.label]
    assert scores.overall[1].value == 0.5
    assert scores.base_tests is not None
    assert scores.base_tests[1].value == 1.0
    assert list(results.flawed) == ["HumanEval/2"]
    assert results.remarks == [
        "not counted, because their own solutions fail their tests: HumanEval/2 (1 of 3 problems)"
    ]
    assert from_json(msgspec.json.encode(results).decode(), EvaluationResults).flawed == results.flawed
