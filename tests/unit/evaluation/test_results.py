"""Tests for the results of an evaluation."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from megatron_ssd.config.generation import SamplingConfig, SamplingParams
from megatron_ssd.errors import UserError
from megatron_ssd.evaluation.grid import Measurements
from megatron_ssd.evaluation.results import ModelName, read_results, write_json
from megatron_ssd.grading.metrics import Bootstrap
from megatron_ssd.problems.errata import Errata
from megatron_ssd.schema import Problem, Verdict
from tests.helpers.measured import DIVERSITY, MODELS, results_of

CELLS = tuple(SamplingParams(temperature=t, top_k=20, top_p=p) for t in (1.0, 1.5) for p in (0.6, 0.8))
SAMPLING = SamplingConfig(train=CELLS[2], eval=CELLS[3], default=CELLS[1])
SAMPLES = 5


def _problems() -> list[Problem]:
    return [
        Problem(id=f"p{i:02d}", source="minicode", statement="", form="stdin", difficulty=("hard", "easy")[i % 2])
        for i in range(12)
    ]


def _verdicts(model: ModelName, cell: int) -> list[Verdict]:
    """Cell 3 is the best for the base, cell 2 for the tuned model."""
    best = 3 if model == "base" else 2
    passed = (4 if model == "ssd" else 3) - abs(cell - best)
    return [
        Verdict(problem_id=problem.id, sample_index=i, status="passed" if i < passed else "wrong_answer")
        for problem in _problems()
        for i in range(SAMPLES)
    ]


def measurements() -> Measurements:
    return Measurements(
        problems=_problems(),
        cells=CELLS,
        verdicts={m: {cell.label: _verdicts(m, i) for i, cell in enumerate(CELLS)} for m in MODELS},
        ks=(1, 5),
        num_samples=SAMPLES,
        bootstrap=Bootstrap(num_resamples=50),
    )


def test_results_equal_a_hand_computation() -> None:
    results = results_of(measurements(), SAMPLING)
    assert [score.key for score in results.headline] == ["base_default", "base_train", "base_best", "ssd_best"]
    assert {(c.model, c.temperature, c.top_p) for c in results.grid if c.chosen} == {
        ("base", 1.5, 0.8),
        ("ssd", 1.5, 0.6),
    }
    ssd, base = results.score("ssd_best"), results.score("base_best")
    assert ssd.overall[1].value == pytest.approx(0.8)
    assert list(ssd.by_difficulty) == ["easy", "hard"]
    assert base.ssd_gain is not None
    assert base.ssd_gain[1].value == pytest.approx(0.2)
    assert (base.ssd_gain[1].sign_test.ahead, base.ssd_gain[1].sign_test.tied) == (6, 0)
    assert results.setting(base).outcomes == {"passed": 36, "wrong_answer": 24}
    assert results.setting(ssd).diversity == DIVERSITY
    assert {claim.status for claim in results.claims} <= {"shown", "not shown", "unclear"}
    assert results.claims


def test_results_are_read_as_written(tmp_path: Path) -> None:
    flawed = Errata(flaws={"p3": "a test is wrong"}, num_problems=90, kept=True)
    results = results_of(measurements(), SAMPLING, errata=flawed)
    write_json(tmp_path / "summary.json", results)
    assert read_results(tmp_path / "summary.json") == results


def test_a_summary_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Earlier estimates have no ``num_problems``."""
    results = results_of(measurements(), SAMPLING)
    path = tmp_path / "summary.json"
    write_json(path, results)
    path.write_text(re.sub(r',\s*"num_problems": \d+(?=\s*\})', "", path.read_text()))
    found = read_results(path).score("ssd_best").overall[1]
    assert found == dataclasses.replace(results.score("ssd_best").overall[1], num_problems=0)


def test_a_file_with_missing_keys_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "eval" / "minicode" / "summary.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"headline": []}')
    with pytest.raises(UserError, match=r"missing required field `benchmark`.*rename .*eval to eval\.replaced-1"):
        read_results(path)
