"""Exports a run's checkpoint as a Hugging Face folder, run_dir/export.

One process exports a checkpoint of any layout: it reads one tensor at a time from the checkpoint's files, splits it by
its parameter mapping, and writes it in the type in which it was trained.

Memory is a few times the largest tensor. Comparing logits, which is done for small models only, adds the model twice in
fp32.

A killed export keeps its complete files. The next one recognises them by name, size and header and does not write them
again.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.artifacts.cards import CARD, model_card
from megatron_ssd.artifacts.hf_config import GENERATION_CONFIG, generation_config, read_hf_config
from megatron_ssd.artifacts.manifest import megatron_facts
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.errors import UserError
from megatron_ssd.export.assets import Assets, find_assets, set_dtype
from megatron_ssd.export.stage import export_stage
from megatron_ssd.export.state_dict_adapter import open_adapter
from megatron_ssd.export.verify import compare_logits
from megatron_ssd.models.architectures import check_hf_config, to_hf_config
from megatron_ssd.models.transformer_config import DTYPES
from megatron_ssd.process import connection_to_parent
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.training.checkpoint_folder import find_checkpoint, reading

log = logging.getLogger(__name__)


def run_export(config: RunConfig) -> None:
    """Write the trained weights in ``config.run_dir`` as a Hugging Face folder.

    Raises:
        UserError: there is no checkpoint, it is of another model, the base folder or tokenizer is missing, or the
            folder's logits differ from the trained model's.
    """
    stage = export_stage(config)
    if stage.is_current():
        return
    model, options = needed(config.model, "model"), config.export
    dtype = DTYPES[config.precision.params_dtype]
    device = prepare_device(config.cluster)
    checkpoint = find_checkpoint(Path(config.run_dir) / "checkpoints", options.iteration)
    work = stage.begin()
    assets = find_assets(config, model)
    write_assets(assets, work, model, dtype)
    iteration = int(checkpoint.name.removeprefix("iter_"))
    if assets.base is not None and config.objective == "sft":
        _describe(config, assets.base, work, iteration)
    log.info("export: reading %s", checkpoint)
    with reading(checkpoint):
        adapter = open_adapter(checkpoint, model, weights=options.weights, dtype=dtype)
        shards = adapter.write(work, max_shard_bytes=options.max_shard_bytes)
        adapter.check_folder(work)
        facts = compare_logits(work, adapter, device=device)
    stage.publish(
        engine=megatron_facts(),
        counts={"weights": len(adapter.specs), "parameters": model.num_parameters(), "shards": len(shards)},
        facts={"iteration": iteration, "weights": options.weights, **facts},
    )


def write_assets(assets: Assets, folder: Path, model: ModelConfig, dtype: torch.dtype) -> None:
    """Write tokenizer, ``config.json`` and ``generation_config.json`` to ``folder``.

    A model that was trained from a base takes them from the base, unchanged except for the type. For a model that was
    trained from random weights, the configuration is made from ``model``.

    Raises:
        UserError: ``model`` and the base's ``config.json`` differ, or the tokenizer is larger than the model.
    """
    assets.copy_to(folder)
    dtype_name = str(dtype).removeprefix("torch.")
    if assets.base is None:
        special_tokens = _special_tokens(assets.tokenizer, model)
        _write_json(folder / GENERATION_CONFIG, special_tokens)
        values = {**to_hf_config(model, dtype=dtype_name), **special_tokens}
    else:
        values = read_hf_config(assets.base)
        check_hf_config(values, model, source=assets.base / "config.json")
        set_dtype(values, dtype_name)
    _write_json(folder / "config.json", values)


def _describe(config: RunConfig, base: Path, folder: Path, iteration: int) -> None:
    """Write the card of a tuned model, and its configured decode settings in ``generation_config.json``."""
    if config.sampling is None:
        log.info("export: sampling = null: %s is that of the base", GENERATION_CONFIG)
    else:
        values = generation_config(folder, config.sampling.eval, config.sampling.stop_token_ids)
        _write_json(folder / GENERATION_CONFIG, values)
    model = needed(config.model, "model")
    exported = {"iteration": iteration, "weights": config.export.weights, "type": config.precision.params_dtype,
                "parameters": f"{model.num_parameters():,}"}  # fmt: skip
    write_atomically(folder / CARD, model_card(config, base, exported=exported))


def _special_tokens(folder: Path, model: ModelConfig) -> dict[str, int | None]:
    """Ids of the tokens that begin, end and pad a text, by their keys in ``config.json``."""
    from transformers import AutoTokenizer  # takes seconds, and exports of a base model do not need it

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if len(tokenizer) > model.vocab_size:
        raise UserError(
            f"model.vocab_size = {model.vocab_size}",
            rule=f"wrong vocabulary size: the tokenizer in {folder} has {len(tokenizer)} entries",
            fix=f"set model.vocab_size to {len(tokenizer)} or more and train again",
        )
    return {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":  # for a stage that has no other use for torch (``evaluation.checkpoints``)
    with connection_to_parent() as parent:
        try:
            run_export(parent.recv())
            parent.send(None)
        except UserError as error:
            parent.send(error)
