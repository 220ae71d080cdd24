"""The export stage: a checkpoint of run_dir/checkpoints to a Hugging Face folder, run_dir/export.

It runs as one process, whatever layout the checkpoint was trained in: weights are read from the checkpoint's files one
at a time, divided by the weight table, and written in the type that they were trained in.

Memory: a few times the largest weight, not the model. Comparing logits, which only small models do, adds the model
twice in fp32.

A killed export keeps the files that it finished: they are recognised by name, size and header, and not written again.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from megatron_ssd.artifacts.manifest import megatron_facts, read_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.export.assets import find_assets

log = logging.getLogger(__name__)

_NAMES_ONLY = ("name", "path", "revision")  # keys of ModelConfig that do not decide what is written


def run_export(config: RunConfig) -> None:
    """Write ``config.run_dir``'s trained weights as a Hugging Face folder.

    Raises:
        UserError: there is no checkpoint, it is of another model, the base folder or tokenizer is missing, or the
            folder does not compute what the trained model computes.
    """
    stage = export_stage(config)
    if stage.is_current():
        return
    model, run_dir = _model(config), Path(config.run_dir)
    assets = find_assets(config, model)
    from megatron_ssd.export.checkpoint_reader import find_checkpoint, held
    from megatron_ssd.export.state_dict_adapter import open_adapter
    from megatron_ssd.export.verify import compare_logits
    from megatron_ssd.models.transformer_config import DTYPES
    from megatron_ssd.runtime.device import prepare_device

    device = prepare_device(config.cluster)
    checkpoint = find_checkpoint(run_dir / "checkpoints", config.export.iteration)
    work = stage.begin()
    assets.write(work, model, params_dtype=config.precision.params_dtype)
    log.info("export: reading %s", checkpoint)
    with held(checkpoint):
        view = open_adapter(
            checkpoint, model, weights=config.export.weights, dtype=DTYPES[config.precision.params_dtype]
        )
        shards = view.write(work, max_shard_bytes=config.export.max_shard_bytes)
        view.check_folder(work)
        facts = compare_logits(work, view, device=device)
    stage.publish(
        engine=megatron_facts(),
        counts={"weights": len(view.specs), "parameters": model.num_parameters(), "shards": len(shards)},
        facts={"iteration": int(checkpoint.name.removeprefix("iter_")), "weights": config.export.weights, **facts},
    )


def export_stage(config: RunConfig) -> Stage:
    """The stage as ``config`` identifies it: same checkpoints and base folder mean the same export.

    Raises:
        UserError: no model is named, or there is no checkpoint, base folder or tokenizer.
    """
    model, run_dir = _model(config), Path(config.run_dir)
    return Stage(
        name="export",
        run_dir=run_dir,
        config={
            "model": {key: value for key, value in dataclasses.asdict(model).items() if key not in _NAMES_ONLY},
            "params_dtype": config.precision.params_dtype,
            "objective": config.objective,
            **dataclasses.asdict(config.export),
        },
        inputs={
            "checkpoints": read_manifest(run_dir / "checkpoints").content_hash,
            "assets": find_assets(config, model).content_hash,
        },
        replace=config.replace,
        is_work=lambda path: path.suffix == ".safetensors",  # the rest is copied in no time
    )


def _model(config: RunConfig) -> ModelConfig:
    return needed(config.model, "model", fix="choose one: model=NAME")
