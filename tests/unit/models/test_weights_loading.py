"""Hugging Face folders into GPTModel and back on one process: exact weights, equal logits, named errors."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.parallel import ClusterConfig, ParallelConfig, PrecisionConfig
from megatron_ssd.errors import UserError
from megatron_ssd.models.build import build_model
from megatron_ssd.models.hf_checkpoint import load_hf_weights, map_parameters
from megatron_ssd.models.hf_folder import HFWeights, resolve_model_folder
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import process_groups
from tests.tiny_hf import MODELS, write_hf_folder

PARALLEL = ParallelConfig()
# Measured: at most 1.5e-6 over all models below, with logits up to about 3.
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    with process_groups(PARALLEL, device=prepare_device(ClusterConfig(device="cpu"))):
        yield


def load(model: ModelConfig, *, params_dtype: str = "fp32") -> torch.nn.Module:
    assert model.path is not None
    precision = PrecisionConfig(params_dtype=params_dtype, transformer_engine=False)  # type: ignore[arg-type]
    chunks = build_model(model, PARALLEL, precision, device="cpu", seed=None)
    load_hf_weights(chunks, model, PARALLEL, Path(model.path))
    return chunks[0]


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_exact(name: str, tmp_path: Path) -> None:
    model = write_hf_folder(tmp_path, MODELS[name], max_shard_size="20KB")
    chunk = load(model)
    back = {
        hf_name: tensor
        for row in map_parameters(chunk, model)
        for hf_name, tensor in zip(row.hf_names, row.rule.divide(row.parameter, model), strict=True)
    }
    source = HFWeights(tmp_path)
    assert set(back) == source.names
    assert all(torch.equal(tensor, source.read(hf_name)) for hf_name, tensor in back.items())
    assert sum(tensor.numel() for tensor in back.values()) == model.num_parameters()


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = write_hf_folder(tmp_path, MODELS[name])
    difference = logit_difference(model, load(model))
    assert difference < TOLERANCE, f"largest difference {difference:.2e}"


def test_rope_scaling_is_what_makes_the_logits_equal(tmp_path: Path) -> None:
    """The parity above would not notice a missing scaling if it changed nothing at these positions."""
    model = write_hf_folder(tmp_path, MODELS["llama_scaled"])
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    scaled = load(model)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert logit_difference(model, scaled) > 100 * TOLERANCE


def logit_difference(model: ModelConfig, chunk: torch.nn.Module) -> float:
    tokens_BS = torch.randint(model.vocab_size, (2, 256), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reference = transformers.AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
        expected_BSV = reference.eval()(tokens_BS).logits
        positions_BS = torch.arange(256).expand(2, -1)
        logits_BSV = chunk.eval()(tokens_BS, positions_BS, None)
    return float((logits_BSV - expected_BSV).abs().max())


def test_bf16_folder_into_fp32_and_back_is_exact(tmp_path: Path) -> None:
    model = write_hf_folder(tmp_path, MODELS["qwen3"], dtype=torch.bfloat16)
    chunk = load(model)
    (row,) = (row for row in map_parameters(chunk, model) if row.name == "embedding.word_embeddings.weight")
    assert row.parameter.dtype == torch.float32
    assert torch.equal(row.parameter.bfloat16(), HFWeights(tmp_path).read("model.embed_tokens.weight"))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_unknown_and_misshapen_weights_are_named(tmp_path: Path) -> None:
    model = write_hf_folder(tmp_path, MODELS["qwen3"])
    up, bias = "model.layers.2.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.bias"
    change_weights(tmp_path, lambda weights: weights.update({bias: torch.zeros(64)}))
    with pytest.raises(UserError, match=rf"1 weight\(s\) unknown: {bias}"):
        load(model)
    change_weights(tmp_path, lambda weights: (weights.pop(bias), weights.update({up: torch.zeros(47, 32)})))
    with pytest.raises(UserError, match=rf"weight {up} in .* has shape \[47, 32\] and the model wants \[48, 32\]"):
        load(model)
    change_weights(tmp_path, lambda weights: weights.pop(up))
    with pytest.raises(UserError, match=rf"1 weight\(s\) missing: {up}"):
        load(model)


def test_a_tied_folder_may_hold_the_output_layer_too(tmp_path: Path) -> None:
    model = write_hf_folder(tmp_path, MODELS["qwen3_tied"])
    change_weights(tmp_path, lambda weights: weights.update({"lm_head.weight": torch.zeros(64, 32)}))
    load(model)


def test_wrong_vocabulary_size(tmp_path: Path) -> None:
    model = write_hf_folder(tmp_path, MODELS["qwen3"])
    with pytest.raises(UserError, match=r"model.vocab_size = 128: .*config.json says 64"):
        load(dataclasses.replace(model, vocab_size=128))


def test_folders_that_are_not_whole(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a local Hugging Face folder and is none"):
        resolve_model_folder(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"has no config.json"):
        resolve_model_folder(str(tmp_path))
    model = write_hf_folder(tmp_path, MODELS["qwen3"])
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"model.safetensors: is no whole safetensors file"):
        load(model)
    weights.unlink()
    with pytest.raises(UserError, match=r"model.safetensors: does not exist"):
        load(model)
