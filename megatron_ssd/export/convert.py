"""From a Hugging Face folder to a Megatron-Core checkpoint and back, bit by bit, one weight at a time.

A converted folder holds

    iter_0000000/     the weights, as a checkpoint that any layout loads
    hf/               every other file of the Hugging Face folder, as it was
    hf_dtypes.json    the type of each Hugging Face tensor

so that the way back needs nothing else. Invariants: no tensor is changed, not even in its type; the model is never in
memory, the largest tensor two or three times; a folder has its final name only when it is whole. One process does it,
on a CPU, for checkpoints of any layout.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ssd.artifacts.hashing import sha256_file
from megatron_ssd.artifacts.manifest import package_versions
from megatron_ssd.artifacts.stage import write_atomically
from megatron_ssd.artifacts.whole_folder import whole_folder
from megatron_ssd.config.export import ConvertConfig
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.errors import UserError
from megatron_ssd.models.hf_folder import read_hf_config, resolve_model_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from megatron_ssd.export.checkpoint_writer import WrittenFile
    from megatron_ssd.export.full_model import FullTensor
    from megatron_ssd.models.hf_folder import HFWeights

log = logging.getLogger(__name__)

ASSETS = "hf"
DTYPES_FILE = "hf_dtypes.json"
# Weights in any format, and this project's own records of how the folder was made.
_NO_ASSETS = ("*.safetensors", "*.index.json", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.gguf",
              "manifest.json", ".*")  # fmt: skip
_ASSET_FOLDERS = ("additional_chat_templates",)


def run_convert(config: ConvertConfig) -> None:
    """Convert as ``config`` asks.

    Raises:
        UserError: a folder cannot be read, is of a model that is not built here, or stands where the output goes.
    """
    if config.direction == "hf_to_megatron":
        hf_to_megatron(config)
    else:
        megatron_to_hf(config)


def hf_to_megatron(config: ConvertConfig) -> None:
    """Write ``config.hf``'s weights and other files to ``config.megatron``. Raises ``UserError``."""
    from megatron_ssd.export.checkpoint_writer import write_checkpoint
    from megatron_ssd.export.full_model import full_model
    from megatron_ssd.models.hf_checkpoint import check_weights
    from megatron_ssd.models.hf_folder import HFWeights
    from megatron_ssd.training.checkpoint_folder import checkpoint_path

    folder = resolve_model_folder(config.hf, key="hf")
    model = model_of(folder)
    with whole_folder(Path(config.megatron), key="megatron", replace=config.replace) as work:
        whole = full_model(model)
        weights = HFWeights(folder)
        names = [name for weight in whole.weights for name in weight.hf_names]
        shapes = {
            name: shape
            for weight in whole.weights
            for name, shape in zip(weight.hf_names, weight.hf_shapes, strict=True)
        }
        check_weights(weights, model, shapes)
        dtypes = {name: str(weights.dtype(name)).removeprefix("torch.") for name in names}
        checkpoint = checkpoint_path(work, 0)
        files = write_checkpoint(checkpoint, whole, lambda weight: _pieces(weight, weights, model))
        _write_facts(checkpoint, files)
        copy_assets(folder, work / ASSETS)
        write_atomically(work / DTYPES_FILE, json.dumps(dtypes, indent=0) + "\n")
    log.info("converted %d weights to %s", len(names), config.megatron)


def megatron_to_hf(config: ConvertConfig) -> None:
    """Write a checkpoint in ``config.megatron`` as the Hugging Face folder ``config.hf``. Raises ``UserError``."""
    from megatron_ssd.export.checkpoint_reader import held
    from megatron_ssd.export.state_dict_adapter import open_adapter

    checkpoint = _find_checkpoint(Path(config.megatron), config.iteration)
    own_assets = checkpoint.parent / ASSETS
    if config.hf_assets is not None:
        assets = resolve_model_folder(config.hf_assets, key="hf_assets")
    elif own_assets.is_dir():
        assets = own_assets
    else:
        raise UserError(
            f"megatron = {config.megatron}",
            rule=f"has no {ASSETS}/ with config.json and tokenizer, as a converted folder has",
            fix="add hf_assets=DIR with the Hugging Face folder of the model that it was trained from",
        )
    model = model_of(assets)
    with whole_folder(Path(config.hf), key="hf", replace=config.replace) as work, held(checkpoint):
        view = open_adapter(checkpoint, model, weights=config.weights, dtypes=_dtypes_beside(checkpoint))
        copy_assets(assets, work)
        if assets != own_assets:
            _say_dtype(work / "config.json", {spec.dtype for spec in view.specs})
        shards = view.write(work, max_shard_bytes=config.max_shard_bytes)
        if config.verify:
            view.check_folder(work)
    log.info("converted %d weights to %s in %d file(s)", len(view.specs), config.hf, len(shards))


def _pieces(weight: FullTensor, weights: HFWeights, model: ModelConfig) -> Iterator[Tensor]:
    """A weight as the checkpoint has it; what is only stacked there (gate and up) stays in pieces, to save memory."""
    from megatron_ssd.models.families.mappings import GateUpMapping

    if isinstance(weight.mapping, GateUpMapping):
        yield from map(weights.read, weight.hf_names)
    else:
        yield weight.mapping.merge([weights.read(name) for name in weight.hf_names], model)


def _dtypes_beside(checkpoint: Path) -> dict[str, torch.dtype]:
    """Types of the Hugging Face tensors that the checkpoint was converted from; nothing for one of training."""
    import torch

    path = checkpoint.parent / DTYPES_FILE
    if not path.is_file():
        return {}
    return {name: getattr(torch, said) for name, said in json.loads(path.read_text(encoding="utf-8")).items()}


def model_of(folder: Path) -> ModelConfig:
    """The model that ``folder``'s ``config.json`` describes. Raises ``UserError`` where none such is built here."""
    from megatron_ssd.models.families import FAMILIES

    values = read_hf_config(folder)
    model_type = values.get("model_type")
    if model_type not in FAMILIES:
        raise UserError(
            f"{folder / 'config.json'}: model_type = {model_type!r}",
            rule=f"known are {', '.join(FAMILIES)}",
            fix="use a model of one of these families",
        )
    said = FAMILIES[model_type].from_hf_config(values, source=folder / "config.json")
    return ModelConfig(name=folder.name, **said)


def copy_assets(source: Path, target: Path) -> None:
    """Copy every file of a Hugging Face folder that holds no weights, as it is."""
    target.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_dir() and path.name in _ASSET_FOLDERS:
            shutil.copytree(path, target / path.name)
        elif path.is_file() and not any(path.match(pattern) for pattern in _NO_ASSETS):
            shutil.copyfile(path, target / path.name)


def _find_checkpoint(folder: Path, iteration: int | None) -> Path:
    """The checkpoint that ``megatron=`` means: a folder ``iter_...``, or one that holds some."""
    from megatron_ssd.export.checkpoint_reader import check_files, find_checkpoint

    if not folder.is_dir():
        raise UserError(f"megatron = {folder}", rule="does not exist", fix="name a folder of checkpoints")
    folder = folder.absolute()
    if not (folder / "metadata.json").is_file():
        return find_checkpoint(folder, iteration)
    if iteration is not None:
        raise UserError(f"iteration = {iteration}", rule=f"{folder} is one checkpoint already",
                        fix=f"leave it out, or name {folder.parent}")  # fmt: skip
    check_files(folder)
    return folder


def _write_facts(checkpoint: Path, files: dict[str, WrittenFile]) -> None:
    """``checkpoint.json``, as training writes it; of the large files, what is known from writing them."""
    from megatron_ssd.training.checkpoint_folder import CheckpointFacts, FileFacts

    small = {path.name for path in checkpoint.iterdir()} - files.keys()
    CheckpointFacts(
        iteration=0,
        optimizer="none",
        layout={},
        versions=package_versions(),
        files={
            **{name: FileFacts(bytes=file.bytes, sha256=file.sha256) for name, file in files.items()},
            **{
                name: FileFacts(bytes=(checkpoint / name).stat().st_size, sha256=sha256_file(checkpoint / name))
                for name in sorted(small)
            },
        },
    ).write(checkpoint)


def _say_dtype(path: Path, dtypes: set[torch.dtype]) -> None:
    """Let ``config.json`` name the type of the weights beside it, where they are of one."""
    if len(dtypes) != 1:
        return
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    key = "torch_dtype" if "torch_dtype" in values else "dtype"  # transformers 4 and 5
    values[key] = str(next(iter(dtypes))).removeprefix("torch.")
    write_atomically(path, json.dumps(values, indent=2) + "\n")
