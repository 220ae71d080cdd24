"""Tests that a changed evaluation reuses the results that the change does not affect."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.artifacts.jsonl import read_jsonl
from megatron_ssd.config.generation import EngineConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.evaluation.stage import run_evaluate
from tests.helpers.oracle import N, Oracle, sampler_of, summary_of
from tests.helpers.sandboxed import Executions, record_executions

PROBLEMS = 6
SETTINGS = 6  # four of the base, two of the tuned model


def changed(config: RunConfig, **evaluation: Any) -> RunConfig:
    return dataclasses.replace(config, replace=True, evaluation=dataclasses.replace(config.evaluation, **evaluation))


def evaluated(config: RunConfig, *, lives: int = 10**9) -> Oracle:
    """Evaluate the run; returns the engine, which has the requests for missing responses."""
    oracle = Oracle(config, lives=lives)
    run_evaluate(config, sampler=sampler_of(oracle))
    return oracle


@pytest.fixture
def executed(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> Executions:
    """The programs that run after ``config`` was evaluated once."""
    evaluated(config)
    return record_executions(monkeypatch)


def from_scratch(config: RunConfig, tmp_path: Path) -> dict[str, Any]:
    """The summary of the same run, evaluated for the first time."""
    run_dir = tmp_path / "scratch"
    run_dir.mkdir()
    (run_dir / "export").symlink_to(Path(config.run_dir) / "export")
    fresh = dataclasses.replace(config, run_dir=str(run_dir))
    evaluated(fresh)
    return summary_of(fresh)


def test_a_change_of_the_statistics_samples_and_runs_nothing(config: RunConfig, executed: Executions, tmp_path: Path):
    other = changed(config, ks=(1, 2, 4), confidence=0.9, bootstrap_samples=300)
    oracle = evaluated(other)
    assert oracle.starts == []
    assert oracle.requests == []
    assert executed == []
    assert set(summary_of(other)["headline"][0]["overall"]) == {"1", "2", "4"}
    assert summary_of(other) == from_scratch(other, tmp_path)


def test_a_wider_grid_samples_only_the_new_cells(config: RunConfig, executed: Executions, tmp_path: Path):
    wider = changed(config, temperatures=(1.0, 1.5, 0.5))
    oracle = evaluated(wider)
    assert {(request.params.label, request.params.temperature) for request in oracle.requests} == {
        ("T0.5-k20-p0.8", 0.5)
    }
    assert len(oracle.requests) == 2 * PROBLEMS * N
    assert summary_of(wider) == from_scratch(wider, tmp_path)


def test_more_samples_keep_the_first_ones(config: RunConfig, executed: Executions, tmp_path: Path):
    more = changed(config, num_samples=N + 2)
    oracle = evaluated(more)
    assert {request.sample_index for request in oracle.requests} == {N, N + 1}
    assert len(oracle.requests) == 2 * PROBLEMS * SETTINGS
    assert summary_of(more) == from_scratch(more, tmp_path)


def test_fewer_samples_sample_nothing(config: RunConfig, executed: Executions, tmp_path: Path):
    fewer = changed(config, num_samples=N - 1)
    assert evaluated(fewer).requests == []
    assert executed == []
    assert summary_of(fewer) == from_scratch(fewer, tmp_path)


def test_another_sandbox_keeps_responses_and_runs_every_program_again(config: RunConfig, executed: Executions):
    oracle = evaluated(changed(config, sandbox=dataclasses.replace(config.evaluation.sandbox, cpu_seconds=3.0)))
    assert oracle.requests == []
    assert len(executed) == 2 * PROBLEMS  # one correct and one wrong program per problem


@pytest.mark.parametrize("change", ["seed", "max_tokens", "engine"])
def test_a_change_that_affects_responses_samples_all_again(config: RunConfig, executed: Executions, change: str):
    if change == "seed":
        config = dataclasses.replace(config, seed=config.seed + 1, replace=True)
    elif change == "engine":
        config = dataclasses.replace(config, engine=EngineConfig(max_model_len=512, dtype="float16"), replace=True)
    else:
        config = changed(config, max_tokens=64)
    assert len(evaluated(config).requests) == PROBLEMS * N * SETTINGS


def test_a_changed_record_is_sampled_again(config: RunConfig):
    evaluated(config)
    path = Path(config.run_dir) / "eval/minicode/generations/base/T1-k20-p0.8.jsonl"
    records = read_jsonl(path)
    records[0]["seed"] += 1
    records[1]["prompt_token_ids"] = records[1]["prompt_token_ids"][1:]
    records[2]["model_revision"] = "another"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    oracle = evaluated(changed(config, ks=(1,)))
    assert sorted(request.key for request in oracle.requests) == sorted(
        (record["problem_id"], record["sample_index"]) for record in records[:3]
    )


def test_unfinished_results_that_were_moved_aside_are_reused(config: RunConfig, tmp_path: Path):
    with pytest.raises(UserError, match="died"):
        evaluated(config, lives=60)
    wider = changed(config, temperatures=(1.0, 1.5, 0.5))
    oracle = evaluated(wider)
    assert len(oracle.requests) == PROBLEMS * N * (SETTINGS + 2) - 60
    assert (Path(config.run_dir) / "eval.partial.replaced-1").is_dir()
    assert summary_of(wider) == from_scratch(wider, tmp_path)


def test_changing_back_and_forth_samples_nothing(config: RunConfig, executed: Executions, tmp_path: Path):
    evaluated(changed(config, temperatures=(0.5,)))
    back = changed(config, temperatures=(1.0, 1.5))
    executed.clear()
    assert evaluated(back).requests == []
    assert executed == []
    assert summary_of(back) == from_scratch(back, tmp_path)


def test_responses_of_a_version_without_a_folder_for_each_benchmark_are_reused(config: RunConfig):
    evaluated(config)
    folder = Path(config.run_dir) / "eval"
    for path in list((folder / "minicode").iterdir()):
        path.rename(folder / path.name)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["inputs"]["benchmark"] = manifest["inputs"].pop("benchmark minicode")
    del manifest["config"]["rules"]
    manifest["identity"] = "of another version"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert evaluated(dataclasses.replace(config, replace=True)).requests == []


def test_infrastructure_errors_are_graded_again(config: RunConfig, executed: Executions):
    path = Path(config.run_dir) / "eval/minicode/verdicts/ssd/T1-k20-p0.8.jsonl"
    records = read_jsonl(path)
    records[0]["status"] = "infrastructure_error"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    again = changed(config, ks=(1,))
    assert evaluated(again).requests == []
    assert read_jsonl(path)[0]["status"] == "passed"
