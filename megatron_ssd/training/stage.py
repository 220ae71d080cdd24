"""Identity of the training stage: what decides the content of ``run_dir/checkpoints``.

The module does not import torch or Megatron-Core, so that the pipeline can check quickly whether the stage is up to
date. The parallel layout is not part of the identity: it affects rounding, not what is trained, and a run may resume
under another layout.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.hub import model_folder, model_hash
from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.run import RunConfig, needed

METRICS_FILE = "metrics.jsonl"  # in the stage's folder; one line for each iteration
# Keys of the training section that do not affect the trained weights.
_NOT_TRAINED = (
    "micro_batch_size", "tokens_per_micro_batch", "self_test", "validation_interval", "max_skipped", "spike_factor",
    "log_interval", "tensorboard", "wandb_project", "gc_interval", "profile_steps",
    "hang_seconds", "hang_factor",
)  # fmt: skip


def training_stage(config: RunConfig) -> Stage:
    """The stage that writes ``run_dir/checkpoints``.

    Raises:
        UserError: there is no data set, or no base model to start from.
    """
    model = needed(config.model, "model")
    run_dir = Path(config.run_dir)
    inputs = {"dataset": read_manifest(run_dir / "dataset").content_hash}
    if config.trains_from_base:
        inputs["model"] = model_hash(model_folder(model.path, model.revision))
    trained = {**_without(config.training, *_NOT_TRAINED), "segment_multiple": config.segment_multiple}
    if not config.training.packs_steps:
        del trained["batch_unit"]  # packing says it: without it samples, else packed sequences
    settings = {
        "model": _without(model, "path", "revision", "name"),
        "objective": config.objective,
        "seed": config.seed,
        "precision": {key: dataclasses.asdict(config.precision)[key] for key in ("params_dtype", "fast_matmul", "fp8")},
        "optimizer": _without(config.optimizer, "cpu_offload_fraction"),
        "training": trained,
    }
    if model.is_moe:
        settings["moe"] = _without(config.moe, "dispatcher", "grouped_gemm", "router_fusion")
    return Stage(
        name="checkpoints",
        run_dir=run_dir,
        config=settings,
        inputs=inputs,
        replace=config.replace,
        is_work=lambda path: path.parts[0].startswith("iter_"),  # without a checkpoint, a restart begins at iteration 1
    )


def _without(section: Any, *keys: str) -> dict[str, Any]:
    """A configuration section as a dictionary, without the keys that do not decide what is trained."""
    return {key: value for key, value in dataclasses.asdict(section).items() if key not in keys}
