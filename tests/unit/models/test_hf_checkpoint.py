"""Tests loading Hugging Face folders into Megatron-Core's GPTModel in one process."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from megatron.core.models.gpt import GPTModel
from safetensors.torch import load_file, save_file

from megatron_ssd.artifacts.hub import model_folder
from megatron_ssd.config.cluster import ClusterConfig
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.errors import UserError
from megatron_ssd.models import hf_checkpoint
from megatron_ssd.models.build import build_model
from megatron_ssd.models.hf_checkpoint import load_hf_weights, map_parameters
from megatron_ssd.models.hf_weights import HFWeights
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import process_groups
from tests.helpers.errors import one_line_error
from tests.helpers.tiny_hf import MODELS, save_reference_logits, write_hf_folder

PARALLEL = ParallelConfig()
TOKENS_BS = torch.randint(63, (2, 256), generator=torch.Generator().manual_seed(0))
# Relative to the largest logit. Measured: at most 2.4e-6 over the fixed models and forty drawn ones.
TOLERANCE = 1e-5


def precision_of(params_dtype: Literal["fp32", "bf16"]) -> PrecisionConfig:
    return PrecisionConfig(params_dtype=params_dtype, transformer_engine=False)


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    with process_groups(PARALLEL, device=prepare_device(ClusterConfig(device="cpu"))):
        yield


def load(model: ModelConfig) -> GPTModel:
    assert model.path is not None
    chunks = build_model(model, PARALLEL, precision_of("fp32"), device="cpu", seed=None)
    load_hf_weights(chunks, model, PARALLEL, Path(model.path))
    return chunks[0]


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_exact(name: str, tmp_path: Path) -> None:
    model = write_hf_folder(tmp_path, MODELS[name], max_shard_size="20KB")
    chunk = load(model)
    back = {
        hf_name: tensor
        for mapped in map_parameters(chunk, model)
        for hf_name, tensor in zip(mapped.hf_names, mapped.mapping.split(mapped.parameter, model), strict=True)
    }
    source = HFWeights(tmp_path)
    assert set(back) == source.names
    assert all(torch.equal(tensor, source.read(hf_name)) for hf_name, tensor in back.items())
    assert sum(tensor.numel() for tensor in back.values()) == model.num_parameters()


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder per model, with transformers' logits of ``TOKENS_BS``."""
    root = tmp_path_factory.mktemp("references")
    for name, model in MODELS.items():
        write_hf_folder(root / name, model)
    # A file with both spellings of the rotary embedding.
    path = root / "llama_scaled" / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "rope_scaling": values["rope_parameters"]}))
    save_reference_logits(root, MODELS, TOKENS_BS)
    return root


def logit_difference(references: Path, name: str, model: ModelConfig) -> float:
    chunk = load(dataclasses.replace(model, path=str(references / name)))
    with torch.no_grad():
        logits_BSV = chunk.eval()(TOKENS_BS, torch.arange(TOKENS_BS.shape[1]).expand_as(TOKENS_BS), None)
    expected_BSV = np.load(references / name / "logits.npy")
    return float(np.abs(logits_BSV.numpy() - expected_BSV).max() / np.abs(expected_BSV).max())


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_transformers(references: Path, name: str) -> None:
    difference = logit_difference(references, name, MODELS[name])
    assert difference < TOLERANCE, f"largest difference {difference:.2e}"


@pytest.mark.parametrize("name", ["llama_scaled", "llama_linear"])
def test_logits_differ_without_rope_scaling(references: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a difference the test above would not detect missing scaling."""
    monkeypatch.setattr(hf_checkpoint, "check_hf_config", lambda *args, **kwargs: None)
    unscaled = dataclasses.replace(MODELS[name], rope_scaling=None)
    assert logit_difference(references, name, unscaled) > 100 * TOLERANCE


def test_weights_of_a_bf16_folder_are_exact_in_fp32(tmp_path: Path) -> None:
    model = write_hf_folder(tmp_path, MODELS["qwen3"], dtype=torch.bfloat16)
    chunk = load(model)
    parameter = chunk.embedding.word_embeddings.weight
    assert parameter.dtype == torch.float32
    assert torch.equal(parameter.bfloat16(), HFWeights(tmp_path).read("model.embed_tokens.weight"))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_unknown_and_misshapen_weights_are_named_in_one_error(tmp_path: Path) -> None:
    model = write_hf_folder(tmp_path, MODELS["qwen3"])
    up, down = "model.layers.2.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
    bias, norm = "model.layers.1.self_attn.q_proj.bias", "model.norm.weight"
    changes = {up: torch.zeros(47, 32), down: torch.zeros(32, 46), bias: torch.zeros(64)}
    change_weights(tmp_path, lambda weights: (weights.update(changes), weights.pop(norm)))
    with pytest.raises(UserError) as caught:
        load(model)
    message = str(caught.value)
    assert f"1 weight(s) missing: {norm}; 1 weight(s) unknown: {bias}; 2 weight(s) misshapen: " in message
    assert f"{up} has shape [47, 32] and the model needs [48, 32]" in message
    assert f"{down} has shape [32, 46] and the model needs [32, 48]" in message


def test_many_missing_weights_are_counted(tmp_path: Path) -> None:
    model = write_hf_folder(tmp_path, MODELS["qwen3"])
    change_weights(tmp_path, lambda weights: [weights.pop(key) for key in list(weights) if "layers.3" in key])
    with pytest.raises(UserError, match=r"11 weight\(s\) missing: model.layers.3.input_.*, .* and 6 more;"):
        load(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_layer_of_a_tied_folder_must_be_a_copy_of_the_embedding(tmp_path: Path, dtype: torch.dtype) -> None:
    model = write_hf_folder(tmp_path, MODELS["qwen3_tied"], dtype=dtype)
    head = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"].clone()
    for copy in (head, head.float()):
        change_weights(tmp_path, lambda weights, copy=copy: weights.update({"lm_head.weight": copy}))
        load(model)
    head[-1, -1] *= 1.5
    for changed in (head, head[:-1].clone()):
        change_weights(tmp_path, lambda weights, head=changed: weights.update({"lm_head.weight": head}))
        with one_line_error("tie_word_embeddings = true: its lm_head.weight differs from model.embed_tokens.weight"):
            load(model)


def test_a_wrong_vocabulary_size_is_named(tmp_path: Path) -> None:
    model = write_hf_folder(tmp_path, MODELS["qwen3"])
    with pytest.raises(UserError, match=r"model.vocab_size = 128: .*config.json says 64"):
        load(dataclasses.replace(model, vocab_size=128))


def test_incomplete_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.path = .*nothing: "):
        model_folder(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"has no config.json"):
        model_folder(str(tmp_path))
    model = write_hf_folder(tmp_path, MODELS["qwen3"])
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"model.safetensors: is not a complete safetensors file"):
        load(model)
    weights.unlink()
    with pytest.raises(UserError, match=r"model.safetensors: does not exist"):
        load(model)
