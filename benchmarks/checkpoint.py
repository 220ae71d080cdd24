"""Compares saving a checkpoint with copying its files, and steps beside an asynchronous save with steps alone.

    python -m benchmarks.checkpoint [--rounds 5] [--steps 8] [--folder DIR]

One process trains a small Qwen3 in fp32 with the distributed optimizer. In each round it saves a checkpoint (hashes and
fsync included, as in production), then ``cp`` copies the same files, which are in the page cache, and each copy is
forced to disk with fsync. Then it runs ``--steps`` iterations alone and as many from the start of an asynchronous save.
The two sides alternate, so that a change of the machine's speed affects both. The table shows medians, and the median
over rounds of the ratio within a round. ``--folder`` chooses the disk; the default is that of temporary files.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SHAPE: dict[str, Any] = {
    "hidden_size": 384, "num_hidden_layers": 8, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64,
    "intermediate_size": 1152, "vocab_size": 8192, "max_position_embeddings": 4096, "tie_word_embeddings": True,
}  # fmt: skip


def main() -> None:
    """Train, measure alternately, and print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5, help="measurements of each side (default 5)")
    options.add_argument("--steps", type=int, default=20, help="iterations of each side in a round (default 20)")
    options.add_argument("--folder", type=Path, help="parent folder of what is written")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        _measure(Path(scratch), arguments.rounds, arguments.steps)


def _measure(folder: Path, rounds: int, steps: int) -> None:
    from megatron_ssd.artifacts.atomic import fsync_path
    from megatron_ssd.runtime.device import prepare_device
    from megatron_ssd.runtime.process_groups import process_groups
    from megatron_ssd.training.checkpoint import save_checkpoint
    from megatron_ssd.training.checkpoint_writer import CheckpointWriter
    from megatron_ssd.training.trainer import build_trainer

    _write_samples(folder)
    config = _config(folder)
    device = prepare_device(config.cluster, config.precision)
    saved, copied = folder / "checkpoints", folder / "copied"
    with process_groups(config.parallel, device=device):
        trainer = build_trainer(config, saved, device)
        trainer.step()
        writers = {
            is_async: CheckpointWriter(saved, dataclasses.replace(config.checkpoint, save_async=is_async))
            for is_async in (False, True)
        }

        def remove() -> None:
            shutil.rmtree(saved, ignore_errors=True)
            shutil.rmtree(copied, ignore_errors=True)

        def save() -> None:
            save_checkpoint(writers[False], trainer.state)

        def copy() -> None:
            subprocess.run(["cp", "-r", saved, copied], check=True)
            for path in [*copied.rglob("*"), copied]:
                fsync_path(path)

        def train() -> None:
            for _ in range(steps):
                trainer.step()
                writers[True].poll()

        def train_beside_save() -> None:
            save_checkpoint(writers[True], trainer.state)
            train()

        results: list[tuple[float, ...]] = []
        for _ in range(rounds + 1):
            remove()
            seconds = [_seconds(save), _seconds(copy)]
            size = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file())
            remove()
            seconds += [_seconds(train), _seconds(train_beside_save)]
            writers[True].finish()
            results.append((*seconds, size / 1e6))
    _print(results[1:], steps)  # the first round allocates


def _print(results: list[tuple[float, ...]], steps: int) -> None:
    save, copy, alone, beside, size = (statistics.median(column) for column in zip(*results, strict=True))
    print(f"{size:,.0f} MB, {len(results)} rounds")
    print(f"save   {save:6.2f} s   {size / save:7,.0f} MB/s")
    print(f"cp     {copy:6.2f} s   {size / copy:7,.0f} MB/s   "
          f"save at {statistics.median(one[1] / one[0] for one in results):.2f} of its speed")  # fmt: skip
    print(f"{steps} iterations: {alone:.2f} s alone, {beside:.2f} s beside a save, "
          f"{statistics.median(one[3] / one[2] for one in results) - 1:+.1%}")  # fmt: skip


def _seconds(action: Callable[[], None]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


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
    from megatron_ssd.config.model import ModelConfig
    from megatron_ssd.config.parallel import ClusterConfig
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
            train_iters=10_000, global_batch_size=2, micro_batch_size=2, seq_length=128, tensorboard=False
        ),
    )


if __name__ == "__main__":
    main()
