"""Tests how far a stage is said to be, and that a job without progress is not requeued for ever."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from megatron_ssd.cluster.progress import stage_progress
from megatron_ssd.cluster.requeues import MOST_STARTS, check_requeues
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from tests.helpers.training_run import training_config


def write_lines(path: Path, count: int, *, rest: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"iteration": 1}\n' * count + rest)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return training_config(tmp_path)


def test_lines_of_all_workers_are_counted(config: RunConfig, tmp_path: Path) -> None:
    assert stage_progress(config, "samples") is None
    write_lines(tmp_path / "samples.partial" / "worker-0-of-2.jsonl", 3)
    write_lines(tmp_path / "samples.partial" / "worker-1-of-2.jsonl", 2, rest='{"cut off')
    found = stage_progress(config, "samples")
    assert found is not None
    assert (found.done, found.total, found.kept, str(found)) == (5, None, 5, "5 samples")


def test_iterations_that_are_not_saved_are_shown_as_such(config: RunConfig, tmp_path: Path) -> None:
    work = tmp_path / "checkpoints.partial"
    write_lines(work / "metrics.jsonl", 0)
    assert str(stage_progress(config, "checkpoints")) == "0 of 10 iterations"
    lines = "".join(f'{{"iteration": {number}}}\n' for number in range(1, 8))
    (work / "metrics.jsonl").write_text(lines + '{"iterat')
    (work / "iter_0000004").mkdir()
    assert str(stage_progress(config, "checkpoints")) == "7 of 10 iterations, 4 saved"


@pytest.mark.parametrize("stage", ["problems", "dataset", "export", "report"])
def test_a_stage_that_does_not_resume_has_no_progress(config: RunConfig, tmp_path: Path, stage: str) -> None:
    write_lines(tmp_path / f"{stage}.partial" / "something.jsonl", 3)
    assert stage_progress(config, stage) is None


def start(config: RunConfig, restarts: int, **more: str) -> None:
    count = {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
    check_requeues(config, "samples", {"SLURM_JOB_ID": "7", **count, **more})


def test_a_job_that_never_gets_further_is_ended(config: RunConfig) -> None:
    for restarts in range(MOST_STARTS):
        start(config, restarts)
    with pytest.raises(UserError, match=r"job 7: was started 5 times without progress; see its log"):
        start(config, MOST_STARTS)
    with pytest.raises(UserError):  # also if it is requeued by hand
        start(config, MOST_STARTS + 1)
    start(config, 0)  # submitted again, in a cluster that counts from the beginning


def test_a_job_that_gets_further_may_be_requeued_as_often_as_needed(config: RunConfig, tmp_path: Path) -> None:
    for restarts in range(3 * MOST_STARTS):
        write_lines(tmp_path / "samples.partial" / "worker-0-of-1.jsonl", restarts // 3)
        start(config, restarts)


def test_only_jobs_and_only_their_first_rank_are_counted(config: RunConfig, tmp_path: Path) -> None:
    for restarts in range(2 * MOST_STARTS):
        start(config, restarts, RANK="1")
        check_requeues(dataclasses.replace(config, run_dir=str(tmp_path / "none")), "samples", {})
    assert not list(tmp_path.iterdir())
