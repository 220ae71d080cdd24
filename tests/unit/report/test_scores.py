"""The report reads what the evaluation really writes, not only what the tests' own fixture says that it writes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from megatron_ssd.config.generation import SamplingConfig, SamplingParams
from megatron_ssd.evaluation.diversity import Diversity
from megatron_ssd.evaluation.grid import ModelName
from megatron_ssd.evaluation.measurements import Measurements
from megatron_ssd.evaluation.summary import summarise
from megatron_ssd.grading.metrics import Bootstrap
from megatron_ssd.report.scores import read_scores
from megatron_ssd.schema import Problem, Verdict
from tests.helpers.report_run import NO_ERRATA

CELLS = tuple(SamplingParams(temperature=t, top_k=20, top_p=p) for t in (1.0, 1.5) for p in (0.6, 0.8))
SAMPLING = SamplingConfig(train=CELLS[2], eval=CELLS[3], default=CELLS[1])
MODELS: tuple[ModelName, ...] = ("base", "ssd")
SAMPLES = 5


def _problems() -> list[Problem]:
    return [
        Problem(id=f"p{i:02d}", source="minicode", statement="", form="stdin", difficulty=("hard", "easy")[i % 2])
        for i in range(12)
    ]


def _verdicts(model: ModelName, cell: int) -> list[Verdict]:
    """Cell 3 is the best of the base, cell 2 of the tuned model."""
    best = 3 if model == "base" else 2
    passed = (4 if model == "ssd" else 3) - abs(cell - best)
    return [
        Verdict(problem_id=problem.id, sample_index=i, status="passed" if i < passed else "wrong_answer")
        for problem in _problems()
        for i in range(SAMPLES)
    ]


def test_a_real_summary_becomes_records(tmp_path: Path) -> None:
    found = Measurements(
        problems=_problems(),
        cells=CELLS,
        verdicts={m: {cell.label: _verdicts(m, i) for i, cell in enumerate(CELLS)} for m in MODELS},
        ks=(1, 5),
        num_samples=SAMPLES,
        bootstrap=Bootstrap(num_resamples=50),
    )
    reasons = {m: {cell.label: Counter(stop=len(_problems()) * SAMPLES) for cell in CELLS} for m in MODELS}
    same = Diversity(distinct=2.0, distinct_passing=1.5, num_solved=9)
    diversity = {m: {cell.label: same for cell in CELLS} for m in MODELS}
    path = tmp_path / "summary.json"
    path.write_text(
        json.dumps(summarise(found, SAMPLING, finish_reasons=reasons, diversity=diversity, facts={"errata": NO_ERRATA}))
    )
    scores = read_scores(path)
    assert [score.key for score in scores.headline] == ["base_default", "base_train", "base_best", "ssd_best"]
    assert {(c.model, c.temperature, c.top_p) for c in scores.sweep.grid if c.chosen} == {
        ("base", 1.5, 0.8),
        ("ssd", 1.5, 0.6),
    }
    assert scores.row("ssd_best").overall[1].value == pytest.approx(0.8)
    assert list(scores.row("ssd_best").by_difficulty) == ["easy", "hard"]
    gain = scores.row("base_best").ssd_gain
    assert gain is not None
    assert gain[1].value == pytest.approx(0.2)
    assert scores.outcomes["base"] == {"passed": 36, "wrong_answer": 24}
    assert {claim.status for claim in scores.claims} <= {"shown", "not shown", "unclear"}
    assert scores.claims
