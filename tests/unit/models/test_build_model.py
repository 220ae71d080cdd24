"""Tests a model's parameter count and initial weights."""

import dataclasses

import pytest
import torch

from megatron_ssd.config.model import ModelConfig, RopeScalingConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.errors import ConfigError
from megatron_ssd.models.build import build_model
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import fake_process_group, process_groups
from tests.helpers.training_run import CPU, DEEP, DENSE, EXACT, MOE

ONE = ParallelConfig()
UNTIED_LLAMA = dataclasses.replace(
    DENSE, model_type="llama", tie_word_embeddings=False, rope_scaling=RopeScalingConfig(), name="llama"
)


def built(model: ModelConfig, **kwargs: int | None) -> dict[str, torch.Tensor]:
    with process_groups(ONE, device=prepare_device(CPU)):
        (chunk,) = build_model(model, ONE, EXACT, device="cpu", **kwargs)
        return {name: parameter.detach().clone() for name, parameter in chunk.named_parameters()}


@pytest.mark.parametrize("model", [DENSE, MOE, UNTIED_LLAMA], ids=lambda model: model.name)
def test_parameter_count_equals_the_configured_shape(model: ModelConfig) -> None:
    assert sum(parameter.numel() for parameter in built(model, seed=None).values()) == model.num_parameters()


def test_initial_weights_depend_on_the_seed() -> None:
    first, again, other = built(DEEP, seed=1), built(DEEP, seed=1), built(DEEP, seed=2)
    name = "decoder.layers.2.mlp.linear_fc1.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], first[name.replace("layers.2", "layers.3")])


def test_initial_weights_have_the_configured_standard_deviation() -> None:
    weights = built(DEEP, seed=0)
    assert weights["embedding.word_embeddings.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert weights["decoder.layers.0.mlp.linear_fc2.weight"].std().item() == pytest.approx(0.02 / 8**0.5, rel=0.05)
    assert torch.equal(weights["decoder.final_layernorm.weight"], torch.ones(64))
    assert torch.equal(weights["decoder.layers.0.self_attention.q_layernorm.weight"], torch.ones(16))


def test_experts_whose_gradients_would_not_be_summed_are_refused() -> None:
    layout = ParallelConfig(world_size=2, tensor_model_parallel_size=2, sequence_parallel=True)
    with pytest.raises(ConfigError, match="expert_tensor_parallel_size = 1"):
        layout.check_model(MOE)
    dataclasses.replace(layout, expert_tensor_parallel_size=2).check_model(MOE)
    dataclasses.replace(layout, expert_model_parallel_size=2).check_model(MOE)


@pytest.mark.parametrize("model", [DENSE, MOE], ids=lambda model: model.name)
def test_a_model_on_the_meta_device_uses_no_gpu(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_device(CPU)
    # Where a GPU is visible, Megatron-Core's layers put their weights there, whatever device a context names.
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cuda:7")
    with fake_process_group(ONE, rank=0):
        (chunk,) = build_model(model, ONE, EXACT, device="meta", seed=None)
    tensors = [*chunk.named_parameters(), *chunk.named_buffers(), ("rotary", chunk.rotary_pos_emb.inv_freq)]
    assert [name for name, tensor in tensors if tensor.device.type != "meta"] == []
    assert torch.cuda.current_device() == "cuda:7"
