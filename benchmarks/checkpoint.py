"""Compares saving a checkpoint with copying its files, and steps beside an asynchronous save with steps alone.

    python -m benchmarks.checkpoint [--rounds 5] [--folder DIR]

One process trains a Qwen3 of 95 million parameters in fp32 with the distributed optimizer: 1.5 GB of state. In each
round it saves a checkpoint (hashes and fsync included, as in production), then ``cp`` copies the files of the first
one, which are in the page cache, and each copy is forced to disk with fsync. Either side first removes its files of the
round before, so that both write to memory that was just freed. Then an asynchronous save starts, and iterations of 512
tokens run until the checkpoint is published, and as many iterations alone. The two sides alternate, so that a change of
the machine's speed affects both. Training computes with one thread less than there are cores, which leaves one core to
the writer.

The table shows medians of seconds and of CPU seconds of the process, and of the ratios within a round. The time beside
a save includes planning it, copying the state, and publishing. ``--folder`` chooses the disk; the default is that of
temporary files.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sides import Cost, cpu_seconds_of_process

SHAPE: dict[str, Any] = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64,
    "intermediate_size": 2304, "vocab_size": 16384, "max_position_embeddings": 4096, "tie_word_embeddings": True,
}  # fmt: skip


def main() -> None:
    """Train, measure alternately, and print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5, help="measurements of each side (default 5)")
    options.add_argument("--folder", type=Path, help="parent folder of what is written")
    arguments = options.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) - 1))  # before torch is imported
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        _measure(Path(scratch), arguments.rounds)


def _measure(folder: Path, rounds: int) -> None:
    from megatron_ssd.artifacts.atomic import fsync_path
    from megatron_ssd.runtime.device import prepare_device
    from megatron_ssd.runtime.process_groups import process_groups
    from megatron_ssd.training.checkpoint import save_checkpoint
    from megatron_ssd.training.checkpoint_folder import list_checkpoints
    from megatron_ssd.training.checkpoint_writer import CheckpointWriter
    from megatron_ssd.training.trainer import build_trainer

    _write_samples(folder)
    config = _config(folder)
    device = prepare_device(config.cluster, config.precision)
    saved, copied, source = folder / "checkpoints", folder / "copied", folder / "source"
    with process_groups(config.parallel, device=device):
        trainer = build_trainer(config, saved, device)
        trainer.step()
        writers = {
            is_async: CheckpointWriter(saved, dataclasses.replace(config.checkpoint, save_async=is_async))
            for is_async in (False, True)
        }
        trainer.writer = writers[True]
        steps = 0  # iterations beside the last save

        def save() -> None:
            save_checkpoint(writers[False], trainer.state)

        def save_async() -> None:
            save_checkpoint(writers[True], trainer.state)
            writers[True].finish()

        def copy() -> None:
            subprocess.run(["cp", "-r", source, copied], check=True)
            for path in [*copied.rglob("*"), copied]:
                fsync_path(path)

        def train_beside_save() -> None:
            nonlocal steps
            steps = 0
            save_checkpoint(writers[True], trainer.state)
            while not list_checkpoints(saved):
                trainer.step()
                writers[True].poll()
                steps += 1

        def train() -> None:
            for _ in range(steps):
                trainer.step()
                writers[True].poll()

        save()
        saved.rename(source)
        size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
        results: list[dict[str, Cost]] = []
        for number in range(rounds + 1):
            costs = {
                "save": _cost(save, saved, cpu_seconds_of_process),
                "cp": _cost(copy, copied, cpu_seconds_of_process),
                "asynchronous": _cost(save_async, saved, time.process_time),
                "beside a save": _cost(train_beside_save, saved, time.process_time),
                "alone": _cost(train, None, time.process_time),
            }
            print(f"round {number}, {steps} iterations beside the save: {costs}", flush=True)
            results.append(costs)
    print(f"\n{size / 1e6:,.0f} MB, {rounds} rounds after one to warm up; threads of training: "
          f"{os.environ['OMP_NUM_THREADS']}")  # fmt: skip
    _print(results[1:])


def _print(results: list[dict[str, Cost]]) -> None:
    print(f"{'':16}{'seconds':>10}{'CPU s':>10}")
    for name in results[0]:
        print(f"{name:16}{_median([one[name] for one in results])}")
    lost = statistics.median(one["beside a save"].seconds - one["alone"].seconds for one in results)
    speed = _median([_ratio(one["cp"], one["save"]) for one in results])
    delay = _median([_ratio(one["beside a save"], one["alone"]) for one in results])
    print(f"{'cp / save':16}{speed}\n{'beside / alone':16}{delay}\n{'beside - alone':16}{lost:10.2f}")


def _median(costs: list[Cost]) -> str:
    seconds = statistics.median(cost.seconds for cost in costs)
    return f"{seconds:10.2f}{statistics.median(cost.cpu_seconds for cost in costs):10.2f}"


def _ratio(first: Cost, second: Cost) -> Cost:
    return Cost(first.seconds / second.seconds, first.cpu_seconds / second.cpu_seconds)


def _cost(action: Callable[[], None], written: Path | None, cpu_clock: Callable[[], float]) -> Cost:
    """The cost of ``action``, which writes the folder ``written``."""
    if written is not None:
        shutil.rmtree(written, ignore_errors=True)
        os.sync()  # what the file system still does about it is not part of the action
    started, cpu_before = time.perf_counter(), cpu_clock()
    action()
    return Cost(time.perf_counter() - started, cpu_clock() - cpu_before)


def _write_samples(folder: Path) -> None:
    from megatron_ssd.artifacts.stage import Stage
    from megatron_ssd.dataset.indexed import IndexedWriter

    random = np.random.default_rng(0)
    stage = Stage(name="dataset", run_dir=folder, config={}, inputs={})
    with IndexedWriter(stage.begin() / "samples", vocab_size=SHAPE["vocab_size"]) as writer:
        for _ in range(64):
            writer.add(random.integers(1, SHAPE["vocab_size"], 129).tolist())
    stage.publish(counts={"documents": 64})


def _config(folder: Path) -> Any:
    from megatron_ssd.config.cluster import ClusterConfig
    from megatron_ssd.config.model import ModelConfig
    from megatron_ssd.config.precision import PrecisionConfig
    from megatron_ssd.config.run import RunConfig
    from megatron_ssd.config.training import TrainingConfig

    return RunConfig(
        run_dir=str(folder),
        objective="pretrain",
        model=ModelConfig(name="small", model_type="qwen3", **SHAPE),
        precision=PrecisionConfig(params_dtype="fp32", fast_matmul=True, transformer_engine=False),
        cluster=ClusterConfig(device="cpu"),
        training=TrainingConfig(
            train_iters=10_000, global_batch_size=4, micro_batch_size=4, seq_length=128, tensorboard=False
        ),
    )


if __name__ == "__main__":
    main()
