"""Tests for the evaluation of every checkpoint, with an engine that returns correct programs."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from megatron_ssd.artifacts.manifest import FILE_NAME, manifest_json, read_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import ConfigError, UserError
from megatron_ssd.evaluation.checkpoints import FOLDER, Evaluations, checkpoint_runs, read_checkpoints, run_evaluations
from megatron_ssd.evaluation.results import EvaluationResults, read_results
from megatron_ssd.evaluation.stage import evaluation_stage
from megatron_ssd.export.stage import export_stage
from tests.helpers.oracle import N, Oracle, sampler_of

NUM_PROBLEMS, NUM_SETTINGS = 6, 6  # of the run's own evaluation, over base and tuned model
ITERATIONS = (2, 4, 6)  # the run exports the last


@pytest.fixture
def every(config: RunConfig, model_folder: Path) -> RunConfig:
    """A run that asks for all of its checkpoints, which are exported already."""
    run_dir = Path(config.run_dir)
    stage = Stage(name="checkpoints", run_dir=run_dir, config={}, inputs={})
    for iteration in ITERATIONS:
        (stage.begin() / f"iter_{iteration:07d}").mkdir()
    stage.publish()
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, checkpoints="all"))
    for run in checkpoint_runs(config).values():
        Path(run.run_dir).mkdir(parents=True)
        (Path(run.run_dir) / "checkpoints").symlink_to(run_dir / "checkpoints")
        export = export_stage(run)
        shutil.copytree(model_folder, export.begin(), dirs_exist_ok=True)
        export.publish()
    return config


def results_of(config: RunConfig) -> EvaluationResults:
    return read_results(Path(config.run_dir) / "eval" / "minicode" / "summary.json")


def test_checkpoints_are_decoded_once_at_the_configured_setting(every: RunConfig) -> None:
    first, second, third = Oracle(every, lives=NUM_PROBLEMS * N * NUM_SETTINGS + 30), Oracle(every), Oracle(every)
    assert not Evaluations(every).is_current()
    with pytest.raises(UserError, match="died"):
        run_evaluations(every, sampler=sampler_of(first))
    run_evaluations(every, sampler=sampler_of(second))
    run_evaluations(every, sampler=sampler_of(third))
    assert Evaluations(every).is_current()
    assert (len(first.starts), len(second.starts), len(third.starts)) == (4, 1, 0)
    of_others = [*first.requests[NUM_PROBLEMS * N * NUM_SETTINGS :], *second.requests]
    assert len(of_others) == NUM_PROBLEMS * N * (len(ITERATIONS) - 1), "no response is drawn twice"
    assert every.sampling is not None
    assert {request.params for request in of_others} == {every.sampling.eval}

    found = read_checkpoints(Path(every.run_dir), results_of(every))
    assert found is not None
    assert found.decoding == every.sampling.eval.label
    scores = [(one.iteration, one.model, one.selection.value, one.report[1].value) for one in found.scores]
    assert scores == [(0, "base", 1 / N, 1 / N), *((iteration, "ssd", 3 / N, 3 / N) for iteration in ITERATIONS)]
    assert {one.report[3].num_problems for one in found.scores} == {NUM_PROBLEMS // 2}

    folder = Path(every.run_dir) / FOLDER / "iter_0000004" / "eval"
    manifest = read_manifest(folder)
    changed = dataclasses.replace(manifest, config={**manifest.config, "num_samples": 3})
    (folder / FILE_NAME).write_text(manifest_json(changed))
    with pytest.raises(UserError, match=r"iter_0000004: was evaluated with other problems or settings"):
        read_checkpoints(Path(every.run_dir), results_of(every))


def test_only_the_exported_checkpoint_is_evaluated_by_default(every: RunConfig) -> None:
    assert list(checkpoint_runs(every)) == [2, 4]
    last = dataclasses.replace(every, evaluation=dataclasses.replace(every.evaluation, checkpoints="last"))
    assert checkpoint_runs(last) == {}
    # What is asked for is not part of the identity of the evaluation, so it can change later.
    assert evaluation_stage(last).identity == evaluation_stage(every).identity


def test_checkpoints_need_a_tuned_model(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"checkpoints = all.*add ssd"):
        dataclasses.replace(config.evaluation, models=("base",), checkpoints="all")
