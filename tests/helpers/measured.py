"""Evaluation results of made-up verdicts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from megatron_ssd.config.generation import SamplingConfig, SamplingParams
from megatron_ssd.evaluation.diversity import Diversity
from megatron_ssd.evaluation.grid import Measurements
from megatron_ssd.evaluation.results import EvaluationResults, ModelName
from megatron_ssd.evaluation.summary import summarise
from megatron_ssd.grading.metrics import Bootstrap
from megatron_ssd.problems.benchmarks import Benchmark
from megatron_ssd.problems.errata import Errata
from megatron_ssd.schema import Problem, Verdict
from tests.helpers.programs import function_problem

MODELS: tuple[ModelName, ...] = ("base", "ssd")
SAMPLING = SamplingConfig(
    train=SamplingParams(temperature=1.5, top_k=20, top_p=0.6),
    eval=SamplingParams(temperature=1.5, top_k=20, top_p=0.8),
    default=SamplingParams(temperature=1.0, top_k=20, top_p=0.8),
)
ERRATA = Errata(flaws={}, num_problems=300, kept=True)
DIVERSITY = Diversity(distinct=12.5, distinct_passing=4.0, num_solved=80)


def graded_problems(count: int) -> list[Problem]:
    """Problems p0, p1, ... that are easy, medium and hard in turn."""
    names = ("easy", "medium", "hard")
    return [function_problem(f"p{i}", difficulty=names[i % 3]) for i in range(count)]


def measure(
    rate: Callable[[ModelName, SamplingParams, Problem], float],
    *,
    problems: Sequence[Problem],
    cells: Sequence[SamplingParams],
    settings: Callable[[ModelName], Sequence[SamplingParams]],
    num_samples: int,
    ks: tuple[int, ...] = (1, 5),
    num_resamples: int = 200,
    models: tuple[ModelName, ...] = MODELS,
    seed: int = 0,
) -> Measurements:
    """Measurements in which a model passes ``rate`` of its samples on each problem, at random."""
    rng = np.random.default_rng(seed)
    verdicts: dict[ModelName, dict[str, list[Verdict]]] = {
        model: {
            setting.label: [
                Verdict(problem_id=problem.id, sample_index=index, status="passed" if passed else "wrong_answer")
                for problem in problems
                for index, passed in enumerate(rng.random(num_samples) < rate(model, setting, problem))
            ]
            for setting in settings(model)
        }
        for model in models
    }
    return Measurements(problems=problems, cells=cells, verdicts=verdicts, ks=ks, num_samples=num_samples,
                        bootstrap=Bootstrap(num_resamples=num_resamples))  # fmt: skip


def results_of(
    found: Measurements,
    sampling: SamplingConfig = SAMPLING,
    *,
    diversity: Diversity = DIVERSITY,
    errata: Errata = ERRATA,
) -> EvaluationResults:
    """The evaluation's results for ``found``."""
    reasons = {model: {label: {"stop": 890, "length": 10} for label in by} for model, by in found.verdicts.items()}
    return summarise(
        found,
        sampling,
        finish_reasons=reasons,
        diversity={model: dict.fromkeys(by, diversity) for model, by in found.verdicts.items()},
        engine={"name": "test", "version": "1"},
        sandbox="bubblewrap",
        prompt_opens_thinking=False,
        benchmark=Benchmark(name="minicode", format="minicode", problems=list(found.problems), errata=errata),
    )


def summary_of(found: Measurements, sampling: SamplingConfig = SAMPLING) -> dict[str, Any]:
    """The evaluation's ``summary.json`` for ``found``."""
    return json.loads(msgspec.json.encode(results_of(found, sampling)))  # type: ignore[no-any-return]
