"""The training stage in one process: what it writes, what it refuses, and when it is the same stage."""

import dataclasses
import errno
import gc
import logging
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.config.parallel import ClusterConfig, ParallelConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.training.stage import run_train, training_stage
from megatron_ssd.training.stop import StopRequest
from tests.training_run import DENSE, metrics, training_config, write_dataset

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="trains on the CPU, which a GPU's presence forbids")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write_dataset(tmp_path)
    return tmp_path


def test_a_run_publishes_checkpoint_metrics_and_manifest(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = training_config(run_dir, training={"train_iters": 6, "tensorboard": True}, checkpoint={"save_interval": 4})
    run_train(config)
    folder = run_dir / "checkpoints"
    assert sorted(path.name for path in folder.glob("iter_*")) == ["iter_0000004", "iter_0000006"]
    assert not (run_dir / "checkpoints.partial").exists()
    rows = metrics(run_dir)
    assert [row["iteration"] for row in rows] == list(range(1, 7))
    assert rows[0]["loss"] == pytest.approx(math.log(DENSE.vocab_size), abs=0.1)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.2
    manifest = read_manifest(folder)
    assert manifest.engine["name"] == "megatron-core"
    assert manifest.counts["iterations"] == 6
    assert manifest.facts["final_loss"] == rows[-1]["loss"]
    with caplog.at_level(logging.INFO):
        run_train(config)
    assert "up to date" in caplog.text


def test_learning_rate_warms_up_and_ends_at_its_minimum(run_dir: Path) -> None:
    run_train(training_config(run_dir))
    rates = [row["learning_rate"] for row in metrics(run_dir)]
    assert rates[:2] == pytest.approx([1.5e-3, 3e-3])
    middle = 3e-4 + (3e-3 - 3e-4) * 0.5 * (1 + math.cos(math.pi * 4 / 8))
    assert rates[5] == pytest.approx(middle)
    assert rates[-1] == pytest.approx(3e-4)


def test_the_loss_does_not_depend_on_the_micro_batch(run_dir: Path, tmp_path: Path) -> None:
    curves = []
    for size in (1, 8):
        run_train(training_config(run_dir, training={"train_iters": 4, "micro_batch_size": size}))
        curves.append([row["loss"] for row in metrics(run_dir)])
        (run_dir / "checkpoints").rename(run_dir / f"micro-{size}")
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_the_layout_is_no_part_of_the_identity_and_the_optimizer_is(run_dir: Path) -> None:
    config = training_config(run_dir)
    other_layout = dataclasses.replace(config, parallel=ParallelConfig(world_size=2, tensor_model_parallel_size=2))
    other_rate = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, lr=1e-2))
    assert training_stage(config).identity == training_stage(other_layout).identity
    assert training_stage(config).identity != training_stage(other_rate).identity


def refused(config: RunConfig) -> str:
    with pytest.raises(UserError) as caught:
        run_train(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_data_set(tmp_path: Path) -> None:
    assert "dataset: has no manifest.json" in refused(training_config(tmp_path))


def test_wrong_vocabulary_size(run_dir: Path) -> None:
    small = dataclasses.replace(DENSE, vocab_size=32)
    message = refused(training_config(run_dir, model=small))
    assert "wrong vocabulary size" in message
    assert "holds token id 63" in message


@pytest.mark.parametrize(("path", "expected"), [(None, "model.path"), ("/nowhere/at/all", "does not exist")])
def test_fine_tuning_needs_a_base_model(run_dir: Path, path: Any, expected: str) -> None:
    model = dataclasses.replace(DENSE, path=path)
    assert expected in refused(training_config(run_dir, objective="sft", model=model))


def test_training_on_a_gpu_that_is_not_there(run_dir: Path) -> None:
    assert "dry_run=true" in refused(training_config(run_dir, cluster=ClusterConfig(device="cuda")))


def test_a_loss_that_is_no_number_stops_the_run(run_dir: Path) -> None:
    config = training_config(run_dir, training={"train_iters": 40}, checkpoint={"save_interval": 2})
    wild = dataclasses.replace(config.optimizer, lr=1e20, min_lr=1e20)
    assert "must be finite" in refused(dataclasses.replace(config, optimizer=wild))


def test_the_other_kind_of_optimizer_cannot_go_on(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = training_config(run_dir, training={"train_iters": 4}, checkpoint={"save_interval": 2})
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "agreed", lambda self: KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            run_train(config)
    gc.collect()  # the interrupted run's frames hold the stage's lock, as a process that ended would not
    other = dataclasses.replace(config, parallel=ParallelConfig(use_distributed_optimizer=False))
    assert "use_distributed_optimizer = false" in refused(other)


def test_a_full_disk_is_said_to_be_one_and_earlier_checkpoints_stay(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron.core import dist_checkpointing
    from torch.distributed.checkpoint import CheckpointException

    save = dist_checkpointing.save

    def save_until_full(state: Any, folder: str, **kwargs: Any) -> Any:
        if "iter_0000004" in folder:
            raise CheckpointException("write", {0: (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), None)})
        return save(state, folder, **kwargs)

    config = training_config(run_dir, training={"train_iters": 6}, checkpoint={"save_interval": 2})
    with monkeypatch.context() as patch:
        patch.setattr(dist_checkpointing, "save", save_until_full)
        with pytest.raises(OSError, match="No space left") as caught:
            run_train(config)
    assert caught.value.errno == errno.ENOSPC
    del caught  # its frames hold the stage's lock, as a process that ended would not
    gc.collect()  # with Python 3.12 they refer to each other
    work = run_dir / "checkpoints.partial"
    assert [path.name for path in work.glob("iter_???????")] == ["iter_0000002"]
    run_train(config)
    assert [row["iteration"] for row in metrics(run_dir)] == list(range(1, 7))
