"""Converts a Hugging Face folder to a Megatron-Core checkpoint, or the reverse, bit by bit.

A converted folder contains

    iter_0000000/     the weights, as a checkpoint that any layout loads
    hf/               every other file of the Hugging Face folder, unchanged
    hf_dtypes.json    the type of each Hugging Face tensor
    hf_buffers/       tensors that no parameter is made of, such as the rotary frequencies in older folders; if any

so that converting back needs nothing else. Invariants: no tensor changes, including its type; at most two or three of
the largest tensors are in memory; a folder gets its final name when it is complete. One process on a CPU converts
checkpoints of any layout.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ssd.artifacts.atomic import atomic_folder, write_atomically
from megatron_ssd.artifacts.hf_config import read_hf_config
from megatron_ssd.artifacts.hub import model_folder
from megatron_ssd.artifacts.manifest import package_versions
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.tools import ConvertConfig
from megatron_ssd.errors import UserError
from megatron_ssd.export.assets import copy_all_assets, set_dtype
from megatron_ssd.export.checkpoint_writer import write_checkpoint
from megatron_ssd.export.full_model import FullTensor, full_model
from megatron_ssd.export.shards import Shard, TensorSpec, write_shard
from megatron_ssd.export.state_dict_adapter import open_adapter
from megatron_ssd.models.architectures import from_hf_config
from megatron_ssd.models.hf_checkpoint import check_tied_head, check_weights
from megatron_ssd.models.hf_weights import WEIGHTS_FILE, HFWeights
from megatron_ssd.models.mappings import HEAD, GateUpMapping
from megatron_ssd.training.checkpoint_folder import (
    CheckpointFacts,
    check_files,
    checkpoint_path,
    find_checkpoint,
    reading,
    write_facts,
)

log = logging.getLogger(__name__)

ASSETS = "hf"
DTYPES_FILE = "hf_dtypes.json"
BUFFERS = "hf_buffers"


def run_convert(config: ConvertConfig) -> None:
    """Convert as ``config`` says.

    Raises:
        UserError: a folder cannot be read, its model is not supported, or the output exists.
    """
    if config.direction == "hf_to_megatron":
        hf_to_megatron(config)
    else:
        megatron_to_hf(config)


def hf_to_megatron(config: ConvertConfig) -> None:
    """Write ``config.hf``'s weights and other files to ``config.megatron``. Raises ``UserError``."""
    folder = model_folder(config.hf, key="hf")
    model = read_model_config(folder)
    with atomic_folder(Path(config.megatron), key="megatron", replace=config.replace) as work:
        full = full_model(model)
        weights = HFWeights(folder)
        check_weights(weights, model, full.hf_shapes)
        copies = [HEAD] if check_tied_head(weights, model) else []
        dtypes = {name: str(weights.dtype(name)).removeprefix("torch.") for name in (*full.hf_shapes, *copies)}
        checkpoint = checkpoint_path(work, 0)
        hashes = write_checkpoint(checkpoint, full, lambda tensor: _pieces(tensor, weights, model))
        facts = CheckpointFacts(iteration=0, optimizer="none", layout={}, versions=package_versions())
        write_facts(checkpoint, facts, hashes=hashes)
        copy_all_assets(folder, work / ASSETS)
        write_atomically(work / DTYPES_FILE, json.dumps(dtypes, indent=0) + "\n")
        _write_buffers(work / BUFFERS, weights, sorted(weights.names - dtypes.keys()))
    log.info("converted %d weights to %s", len(dtypes), config.megatron)


def megatron_to_hf(config: ConvertConfig) -> None:
    """Write a checkpoint in ``config.megatron`` as the Hugging Face folder ``config.hf``. Raises ``UserError``."""
    checkpoint = _find_checkpoint(Path(config.megatron), config.iteration)
    own_assets = checkpoint.parent / ASSETS
    if config.hf_assets is not None:
        assets = model_folder(config.hf_assets, key="hf_assets")
    elif own_assets.is_dir():
        assets = own_assets
    else:
        raise UserError(
            f"megatron = {config.megatron}",
            rule=f"has no {ASSETS}/ with config.json and tokenizer, as a converted folder has",
            fix="add hf_assets=DIR with the Hugging Face folder of the model that it was trained from",
        )
    model = read_model_config(assets)
    with atomic_folder(Path(config.hf), key="hf", replace=config.replace) as work, reading(checkpoint):
        buffers = HFWeights(folder) if (folder := checkpoint.parent / BUFFERS).is_dir() else None
        adapter = open_adapter(
            checkpoint, model, weights=config.weights, dtypes=_hf_dtypes(checkpoint), buffers=buffers
        )
        copy_all_assets(assets, work)
        if assets != own_assets:
            _set_dtype(work / "config.json", {spec.dtype for spec in adapter.specs})
        shards = adapter.write(work, max_shard_bytes=config.max_shard_bytes)
        if config.verify:
            adapter.check_folder(work)
    log.info("converted %d weights to %s in %d file(s)", len(adapter.specs), config.hf, len(shards))


def read_model_config(folder: Path) -> ModelConfig:
    """The model that ``folder``'s ``config.json`` describes. Raises ``UserError`` if it is not supported."""
    values = from_hf_config(read_hf_config(folder), source=folder / "config.json")
    return ModelConfig(name=folder.name, **values)


def _pieces(tensor: FullTensor, weights: HFWeights, model: ModelConfig) -> Iterator[Tensor]:
    """The value of a tensor, in one piece; gate and up stay two pieces, which saves the memory to concatenate them."""
    if isinstance(tensor.mapping, GateUpMapping):
        yield from map(weights.read, tensor.hf_names)
    else:
        yield tensor.mapping.merge([weights.read(name) for name in tensor.hf_names], model)


def _write_buffers(folder: Path, weights: HFWeights, names: list[str]) -> None:
    if names:
        folder.mkdir()
        specs = tuple(TensorSpec(name, weights.shape(name), weights.dtype(name)) for name in names)
        write_shard(folder, Shard(WEIGHTS_FILE, specs), weights.read)


def _hf_dtypes(checkpoint: Path) -> dict[str, torch.dtype]:
    """Types of the Hugging Face tensors that the checkpoint was converted from; empty if it is from training."""
    path = checkpoint.parent / DTYPES_FILE
    if not path.is_file():
        return {}
    return {name: getattr(torch, dtype) for name, dtype in json.loads(path.read_text(encoding="utf-8")).items()}


def _find_checkpoint(folder: Path, iteration: int | None) -> Path:
    """The checkpoint that ``megatron=`` names: a folder ``iter_...``, or one that contains some."""
    if not folder.is_dir():
        raise UserError(f"megatron = {folder}", rule="does not exist", fix="name a folder of checkpoints")
    folder = folder.absolute()
    if not (folder / "metadata.json").is_file():
        return find_checkpoint(folder, iteration)
    if iteration is not None:
        raise UserError(f"iteration = {iteration}", rule=f"{folder} is a single checkpoint",
                        fix=f"leave it out, or name {folder.parent}")  # fmt: skip
    check_files(folder)
    return folder


def _set_dtype(path: Path, dtypes: set[torch.dtype]) -> None:
    """Set the type in ``config.json`` to that of the weights, if they have only one."""
    if len(dtypes) != 1:
        return
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    set_dtype(values, str(next(iter(dtypes))).removeprefix("torch."))
    write_atomically(path, json.dumps(values, indent=2) + "\n")
