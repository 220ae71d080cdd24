"""Tests for the training stage in one process."""

import dataclasses
import errno
import gc
import importlib.util
import logging
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import load_plain_tensors
from torch.distributed.checkpoint import CheckpointException
from transformers import Qwen3ForCausalLM

from launch.train import train as run_train
from megatron_ssd.artifacts.hub import model_hash
from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.config.cluster import ClusterConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.dataset.indexed import open_indexed
from megatron_ssd.errors import UserError
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import process_groups
from megatron_ssd.training.checkpoint import rng_state
from megatron_ssd.training.stage import training_stage
from megatron_ssd.training.trainer import build_trainer
from tests.helpers.devices import without_gpu
from tests.helpers.stopped_training import train_until_stopped
from tests.helpers.tiny_hf import write_hf_folder
from tests.helpers.training_run import DENSE, MOE, metrics, training_config, write_dataset

pytestmark = without_gpu


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
    records = metrics(run_dir)
    assert [record["iteration"] for record in records] == list(range(1, 7))
    assert records[0]["loss"] == pytest.approx(math.log(DENSE.vocab_size), abs=0.1)
    assert records[-1]["loss"] < records[0]["loss"] - 0.2
    manifest = read_manifest(folder)
    assert manifest.engine["name"] == "megatron-core"
    assert manifest.counts["iterations"] == 6
    assert manifest.facts["final_loss"] == records[-1]["loss"]
    with caplog.at_level(logging.INFO):
        run_train(config)
    assert "up to date" in caplog.text


def test_every_metric_is_written_and_the_start_is_logged(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run_train(training_config(run_dir, model=MOE, training={"train_iters": 3}))
    log = caplog.text
    assert "fp32, recompute none; 1 processes: TP1 CP1 EP1 PP1 DP1, distributed optimizer" in log
    assert "packing greedy: 200 samples in" in log
    assert "3 iterations of 4 sequences" in log
    assert "starting from random weights of seed 0 (model.path = null)" in log
    for record in metrics(run_dir):
        assert 0 < record["tokens"] < record["computed_tokens"] == 4 * 64
        assert record["tflops_per_second_per_gpu"] > 0
        assert record["mfu"] is None, "the peak of a CPU is unknown"
        assert record["peak_memory_gib"] > 0.1
        assert len(record["samples"]) == 16
        assert record["expert_load_max"] >= 1 >= record["expert_load_min"]
        assert (record["skipped"], record["spike"], record["validation_loss"]) == (False, False, None)
    left = [record["seconds_left"] for record in metrics(run_dir)]
    assert left[0] > 0
    assert left[-1] == 0


def test_validation_runs_at_its_interval_and_at_the_end(run_dir: Path) -> None:
    training = {"train_iters": 7, "validation_fraction": 0.2, "validation_interval": 3}
    run_train(training_config(run_dir, training=training))
    measured = {m["iteration"]: m["validation_loss"] for m in metrics(run_dir) if m["validation_loss"]}
    assert list(measured) == [3, 6, 7]
    assert math.log(DENSE.vocab_size) > measured[3] > measured[6] > measured[7]
    assert read_manifest(run_dir / "checkpoints").facts["final_validation_loss"] == measured[7]


def test_validation_does_not_change_training(run_dir: Path) -> None:
    curves = []
    for interval in (1, 100):
        training = {"train_iters": 4, "validation_fraction": 0.2, "validation_interval": interval}
        run_train(training_config(run_dir, training=training))
        curves.append([(record["loss"], record["grad_norm"]) for record in metrics(run_dir)])
        (run_dir / "checkpoints").rename(run_dir / f"interval-{interval}")
    assert curves[0] == curves[1]


def test_the_ema_follows_its_formula_and_is_saved(run_dir: Path) -> None:
    """The expected EMA is computed from the weights in the checkpoint of each iteration."""
    run_train(training_config(run_dir, training={"train_iters": 4, "ema_decay": 0.75}, checkpoint={"save_interval": 1}))
    with process_groups(ParallelConfig(), device="cpu"):
        saved = [load_plain_tensors(str(run_dir / "checkpoints" / f"iter_000000{n}")) for n in range(1, 5)]
    names = [name for name in saved[0] if f"ema.{name}" in saved[0]]
    assert len(names) == sum(name.startswith("ema.") for name in saved[0]) > 5
    for name in names:
        mean = saved[0][f"ema.{name}"]
        for each in saved[1:]:
            mean = 0.75 * mean + 0.25 * each[name]
        torch.testing.assert_close(saved[-1][f"ema.{name}"], mean, rtol=1e-5, atol=1e-7)
        assert saved[-1][f"ema.{name}"].dtype == torch.float32


def test_a_loss_spike_is_logged_and_marked_in_the_metrics(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = training_config(run_dir, training={"train_iters": 20, "spike_factor": 1.05})
    unstable = dataclasses.replace(config.optimizer, lr=0.5, min_lr=0.5, lr_warmup_iters=12, clip_grad=1e9)
    run_train(dataclasses.replace(config, optimizer=unstable))
    marked = [record["iteration"] for record in metrics(run_dir) if record["spike"]]
    assert marked
    assert f"iteration {marked[0]}: loss" in caplog.text


def test_no_part_of_training_draws_random_numbers(run_dir: Path) -> None:
    """A run that resumes under another layout seeds its generators again, so nothing may depend on them."""
    config = training_config(run_dir, model=MOE)
    with process_groups(ParallelConfig(), device=prepare_device(config.cluster, config.precision)):
        trainer = build_trainer(config, run_dir / "none", "cpu")
        before = rng_state()
        for _ in range(2):
            trainer.step()
        assert rng_state() == before


def test_the_learning_rate_warms_up_and_ends_at_its_minimum(run_dir: Path) -> None:
    run_train(training_config(run_dir))
    rates = [record["learning_rate"] for record in metrics(run_dir)]
    assert rates[:2] == pytest.approx([1.5e-3, 3e-3])
    middle = 3e-4 + (3e-3 - 3e-4) * 0.5 * (1 + math.cos(math.pi * 4 / 8))
    assert rates[5] == pytest.approx(middle)
    assert rates[-1] == pytest.approx(3e-4)


def test_the_loss_does_not_depend_on_the_micro_batch_size(run_dir: Path, tmp_path: Path) -> None:
    curves = []
    for size in (1, 4):
        run_train(training_config(run_dir, training={"train_iters": 4, "micro_batch_size": size}))
        curves.append([record["loss"] for record in metrics(run_dir)])
        (run_dir / "checkpoints").rename(run_dir / f"micro-{size}")
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_the_optimizer_is_part_of_the_identity_but_the_layout_is_not(run_dir: Path) -> None:
    config = training_config(run_dir)
    other_layout = dataclasses.replace(config, parallel=ParallelConfig(world_size=2, tensor_model_parallel_size=2))
    other_rate = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, lr=1e-2))
    assert training_stage(config).identity == training_stage(other_layout).identity
    assert training_stage(config).identity != training_stage(other_rate).identity


@pytest.mark.parametrize(
    ("section", "changes", "same"),
    [
        ("checkpoint", {"save_interval": 7, "save_async": True, "keep_last": 1, "on_broken": "previous"}, True),
        ("training", {"validation_interval": 5, "max_skipped": 3, "spike_factor": 9.0, "log_interval": 2}, True),
        ("optimizer", {"cpu_offload_fraction": 0.5}, True),
        ("moe", {"dispatcher": "allgather"}, True),
        ("training", {"ema_decay": 0.9}, False),
        ("training", {"validation_fraction": 0.1}, False),
        ("training", {"loss_normalization": "sequence"}, False),
        ("training", {"prompt_loss_weight": 0.1}, False),
        ("moe", {"aux_loss_coeff": 0.01}, False),
        ("moe", {"freeze_router": True}, False),
    ],
)
def test_the_identity_contains_what_determines_the_weights(
    run_dir: Path, section: str, changes: dict[str, Any], same: bool
) -> None:
    config = training_config(run_dir, model=MOE)
    other = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **changes)})
    assert (training_stage(config).identity == training_stage(other).identity) is same


def refused(config: RunConfig) -> str:
    """The one line with which training refuses ``config``."""
    with pytest.raises(UserError) as caught:
        run_train(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_data_set_is_an_error(tmp_path: Path) -> None:
    assert "dataset: does not exist; run tools/preprocess_data.py" in refused(training_config(tmp_path))


def test_a_wrong_vocabulary_size_is_an_error(run_dir: Path) -> None:
    small = dataclasses.replace(DENSE, vocab_size=32)
    message = refused(training_config(run_dir, model=small))
    assert "wrong vocabulary size" in message
    assert "holds token id 63" in message


@pytest.mark.parametrize(("path", "expected"), [(None, "model.path"), ("/nowhere/at/all", "does not exist")])
def test_fine_tuning_needs_a_base_model(run_dir: Path, path: Any, expected: str) -> None:
    model = dataclasses.replace(DENSE, path=path)
    assert expected in refused(training_config(run_dir, objective="sft", model=model))


def test_pretraining_starts_from_the_given_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first loss equals that of the given weights in transformers, and the manifest names them."""
    write_dataset(tmp_path, num_documents=4)  # one global batch, in any order
    model = write_hf_folder(tmp_path / "base", DENSE)
    config = training_config(tmp_path, model=model, training={"packing": "none"})
    with caplog.at_level(logging.INFO):
        run_train(config)
    assert f"starting from the weights of model.path = {tmp_path / 'base'}" in caplog.text
    assert read_manifest(tmp_path / "checkpoints").inputs["model"] == model_hash(tmp_path / "base")
    documents = open_indexed(tmp_path / "dataset" / "samples")
    total, count = 0.0, 0
    with torch.no_grad():
        reference = Qwen3ForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
        for document in documents:
            ids = torch.from_numpy(document.astype("int64"))[None]
            total += (len(document) - 1) * float(reference(ids, labels=ids).loss)
            count += len(document) - 1
    assert metrics(tmp_path)[0]["loss"] == pytest.approx(total / count, rel=1e-5)


def test_pretraining_without_a_model_starts_from_random_weights(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run_train(training_config(run_dir, training={"train_iters": 3}))
    assert "from random weights of seed 0 (model.path = null)" in caplog.text
    assert "model" not in read_manifest(run_dir / "checkpoints").inputs


def test_training_on_a_missing_gpu_is_an_error(run_dir: Path) -> None:
    assert "dry_run=true" in refused(training_config(run_dir, cluster=ClusterConfig(device="cuda")))


def test_non_finite_losses_stop_the_run_without_pruning(run_dir: Path) -> None:
    training = {"train_iters": 40, "max_skipped": 4}
    config = training_config(run_dir, training=training, checkpoint={"save_interval": 1, "keep_last": 1})
    unstable = dataclasses.replace(config.optimizer, lr=1e20, min_lr=1e20)
    message = refused(dataclasses.replace(config, optimizer=unstable))
    assert "must be finite, and were not for 4 iterations" in message
    records = metrics(run_dir, "checkpoints.partial")
    assert [record["skipped"] for record in records[-5:]] == [False, True, True, True, True]
    assert records[-1]["loss"] is None or records[-1]["grad_norm"] is None
    kept = sorted(int(path.name[5:]) for path in (run_dir / "checkpoints.partial").glob("iter_???????"))
    last_update = records[-5]["iteration"]
    assert kept == [last_update + number for number in range(4)], "a checkpoint since the last update was removed"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"precision_aware": True}, ["optimizer.precision_aware = true", "TransformerEngine"]),
        ({"precision_aware": True, "exp_avg_dtype": "bf16"}, ["optimizer.precision_aware = true"]),
        ({"cpu_offload_fraction": 0.5}, ["optimizer.cpu_offload_fraction = 0.5", "cluster.device is cpu"]),
    ],
)
def test_an_unsupported_optimizer_is_an_error(run_dir: Path, changes: dict[str, Any], parts: list[str]) -> None:
    config = training_config(run_dir)
    message = refused(dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **changes)))
    assert all(part in message for part in parts)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed here")
def test_weights_and_biases_must_be_installed(run_dir: Path) -> None:
    message = refused(training_config(run_dir, training={"wandb_project": "mine"}))
    assert "training.wandb_project = mine" in message
    assert "pip install wandb" in message


def test_a_run_cannot_resume_with_another_kind_of_optimizer(run_dir: Path) -> None:
    config = training_config(run_dir, training={"train_iters": 4}, checkpoint={"save_interval": 2})
    train_until_stopped(config, iteration=1)
    other = dataclasses.replace(config, parallel=ParallelConfig(use_distributed_optimizer=False))
    assert "use_distributed_optimizer = false" in refused(other)


def test_a_full_disk_does_not_destroy_earlier_checkpoints(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = dist_checkpointing.save

    def save_until_full(state: Any, folder: str, *args: Any, **kwargs: Any) -> Any:
        if "iter_0000004" in folder:
            raise CheckpointException("write", {0: (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), None)})
        return save(state, folder, *args, **kwargs)

    config = training_config(run_dir, training={"train_iters": 6}, checkpoint={"save_interval": 2})
    with monkeypatch.context() as patch:
        patch.setattr(dist_checkpointing, "save", save_until_full)
        with pytest.raises(OSError, match="No space left") as caught:
            run_train(config)
    assert caught.value.errno == errno.ENOSPC
    del caught  # its frames still hold the stage lock
    gc.collect()  # with Python 3.12 they refer to each other
    work = run_dir / "checkpoints.partial"
    assert [path.name for path in work.glob("iter_???????")] == ["iter_0000002"]
    run_train(config)
    assert [record["iteration"] for record in metrics(run_dir)] == list(range(1, 7))


def test_a_finished_run_releases_its_process_groups(tmp_path: Path) -> None:
    threads = []
    for name in ("first", "second", "third"):
        write_dataset(tmp_path / name)
        run_train(training_config(tmp_path / name, training={"train_iters": 3}))
        gc.collect()
        threads.append(len(list(Path("/proc/self/task").iterdir())))
    # The process groups of one process have about fifty threads.
    assert threads[2] - threads[0] <= 20
