"""The export stage: the newest checkpoint of run_dir/checkpoints to a Hugging Face folder, run_dir/export.

It runs as one process, whatever layout the checkpoint was trained in: Megatron-Core's distributed checkpoint is loaded
into a model of one process and written out by the weight table, in the type that it was trained in.

Memory: the whole model once in that type (61 GB for 30B in bf16), on the GPU where ``cluster.device`` is cuda, and
beside it the largest tensor twice. Comparing logits, which only small models do, adds the model twice in fp32.

A killed export keeps the files that it finished: they are recognised by name, size and header, and not written again.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ssd.artifacts.manifest import megatron_facts, read_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.export import ExportConfig
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.errors import UserError
from megatron_ssd.export.assets import find_assets

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

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
    from megatron_ssd.runtime.device import prepare_device
    from megatron_ssd.runtime.process_groups import process_groups

    # Local layers and exact products: a checkpoint of TransformerEngine's layers has the same keys, copying weights
    # needs no kernel, and logits are compared at full precision.
    precision = PrecisionConfig(params_dtype=config.precision.params_dtype, transformer_engine=False)
    device = prepare_device(config.cluster)
    with process_groups(ParallelConfig(), device=device):
        work = stage.begin()
        assets.write(work, model, params_dtype=precision.params_dtype)
        iteration, chunk = _load_newest(run_dir / "checkpoints", model, precision, device=device)
        counts, facts = _write_and_verify(work, chunk, model, config.export, device=device)
    stage.publish(
        engine=megatron_facts(),
        counts=counts,
        facts={"iteration": iteration, **facts},
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
    )


def _model(config: RunConfig) -> ModelConfig:
    return needed(config.model, "model", fix="choose one: model=NAME")


def _load_newest(folder: Path, model: ModelConfig, precision: PrecisionConfig, *, device: str) -> tuple[int, GPTModel]:
    """(iteration, model of one process) of the newest checkpoint, resharded by Megatron-Core while loading."""
    from megatron_ssd.export.checkpoint import load_weights
    from megatron_ssd.models.build import build_model
    from megatron_ssd.training.checkpoint import newest_checkpoint

    newest = newest_checkpoint(folder)
    if newest is None:
        raise UserError(f"folder {folder}", rule="holds no checkpoint", fix="run launch/train.py to its end")
    iteration, path = newest
    log.info("export: loading %s", path)
    chunks = build_model(model, ParallelConfig(), precision, device=device, seed=None)
    load_weights(path, chunks[0])
    return iteration, chunks[0]


def _write_and_verify(
    work: Path, chunk: GPTModel, model: ModelConfig, export: ExportConfig, *, device: str
) -> tuple[dict[str, int], dict[str, Any]]:
    """Counts and facts of the weight files, written where they are not there yet."""
    from megatron_ssd.export.model_weights import ModelWeights
    from megatron_ssd.export.shards import is_written, plan_shards, write_index, write_shard
    from megatron_ssd.export.verify import compare_logits

    weights = ModelWeights(chunk, model)
    shards = plan_shards(weights.specs, max_bytes=export.max_shard_bytes)
    for shard in shards:
        if is_written(work, shard):
            log.info("export: %s is already whole", shard.file_name)
        else:
            write_shard(work, shard, weights.value)
    write_index(work, shards)
    weights.check_folder(work)
    facts = compare_logits(work, chunk, model, device=device)
    counts = {"weights": len(weights.specs), "parameters": model.num_parameters(), "shards": len(shards)}
    return counts, facts
