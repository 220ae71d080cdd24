"""A run with evaluation results of made-up verdicts, for tests of the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from megatron_ssd.artifacts.jsonl import JsonlWriter
from megatron_ssd.config.evaluation import EvaluationConfig
from megatron_ssd.config.generation import SamplingConfig, SamplingParams
from megatron_ssd.evaluation.diversity import Diversity
from megatron_ssd.evaluation.grid import Measurements, grid_cells, settings_of
from megatron_ssd.evaluation.problem_file import PROBLEMS_FILE, write_problems
from megatron_ssd.evaluation.results import EvaluationResults, ModelName, write_json
from megatron_ssd.grading.metrics import Bootstrap
from megatron_ssd.schema import Problem, Verdict
from tests.helpers.measured import MODELS, results_of
from tests.helpers.report_run import benchmark_folder, build_run, sample_of

Fails = Callable[[ModelName, SamplingParams, Problem], bool]

GRID = EvaluationConfig(temperatures=(1.0, 2.0), top_ps=(0.8,))
SAMPLING = SamplingConfig(train=SamplingParams(temperature=1.5, top_k=20, top_p=0.6),
                          eval=SamplingParams(temperature=1.0, top_k=20, top_p=0.8),
                          default=SamplingParams(temperature=0.7, top_k=20, top_p=0.8))  # fmt: skip
_NUM_SAMPLES = 5


def evaluate(
    problems: Sequence[Problem], fails: Fails = lambda model, params, problem: False
) -> tuple[EvaluationResults, Measurements]:
    """Results of random verdicts. Grading fails for the programs for which ``fails`` returns True."""
    rng = np.random.default_rng(0)

    def verdict(model: ModelName, params: SamplingParams, problem: Problem, index: int) -> Verdict:
        passed = rng.random() < (0.7 if model == "ssd" else 0.4)
        status = "infrastructure_error" if fails(model, params, problem) else "passed" if passed else "wrong_answer"
        failed = 0 if status == "wrong_answer" else None
        return Verdict(problem_id=problem.id, sample_index=index, status=status, failed_test=failed, tests_total=3)  # type: ignore[arg-type]

    found = Measurements(
        problems=problems,
        cells=grid_cells(GRID, SAMPLING),
        verdicts={
            model: {
                params.label: [verdict(model, params, one, index) for one in problems for index in range(_NUM_SAMPLES)]
                for params in settings_of(model, GRID, SAMPLING)
            }
            for model in MODELS
        },
        ks=(1, 5),
        num_samples=_NUM_SAMPLES,
        bootstrap=Bootstrap(num_resamples=200),
    )
    empty = Diversity(distinct=None, distinct_passing=None, num_solved=0)
    return results_of(found, SAMPLING, diversity=empty), found


def publish_evaluation(run_dir: Path, results: EvaluationResults, found: Measurements) -> None:
    """Publish the run of ``build_run`` with these results and a program for each verdict of the headline."""
    build_run(run_dir)
    folder = benchmark_folder(run_dir)
    write_json(folder / "summary.json", results)
    write_problems(folder / PROBLEMS_FILE, found.problems, found.halves)
    for score in results.headline:
        name = f"{score.model}/{score.decoding}.jsonl"
        for kind in ("generations", "verdicts"):
            (folder / kind / name).unlink(missing_ok=True)
        with JsonlWriter(folder / "verdicts" / name) as verdicts, JsonlWriter(folder / "generations" / name) as samples:
            for verdict in found.verdicts[score.model][score.decoding]:
                verdicts.write(verdict.to_json())
                written = sample_of(verdict.problem_id, verdict.sample_index, "```python\nx = 1\n```", "stop", 9)
                samples.write(written.to_json())
