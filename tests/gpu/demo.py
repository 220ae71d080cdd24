"""The demo as a run of its base model and a run of the loop, on the device of the tests here."""

from __future__ import annotations

from pathlib import Path

from megatron_ssd.config.cluster import Device

_TRAINING = {
    "cuda": ("cluster=gpu8", "precision=bf16", "parallel=single"),
    "cpu": ("parallel=single", "training.global_batch_size=8", "training.micro_batch_size=4",
            "optimizer.lr_warmup_iters=2", "checkpoint.save_interval=4"),
}  # fmt: skip
_BASE = {"cuda": (), "cpu": ("training.train_iters=12", "minicode.num_documents=1000")}
# A share of the memory leaves room for the process that measures. A bare machine has no bubblewrap, and the programs
# are those of a model that the tests have trained.
_LOOP = {
    "cuda": ("engine.dtype=bfloat16", "engine.data_parallel_size=1", "engine.gpu_memory_utilization=0.3"),
    "cpu": ("training.train_iters=4", "minicode.num_train_problems=64", "minicode.num_test_problems=12"),
}


def base_overrides(folder: Path, device: Device) -> list[str]:
    """Overrides of the run that makes the base model in ``folder/base``; on a CPU it is smaller than the demo's."""
    return ["experiment=demo_base", *_TRAINING[device], *_BASE[device], f"run_dir={folder / 'base'}"]


def loop_overrides(folder: Path, device: Device) -> list[str]:
    """Overrides of the run in ``folder/loop`` that starts from the export of that model."""
    return ["experiment=demo", *_TRAINING[device], *_LOOP[device], "evaluation.sandbox.kind=rlimit_only",
            f"run_dir={folder / 'loop'}", f"model.path={folder / 'base' / 'export'}"]  # fmt: skip
