"""Tests that a checkpoint of one kind of layers can be loaded into the other, on a CPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from unittest import mock

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.models.gpt import GPTModel

from megatron_ssd.config.model import ModelConfig, MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.config.tools import ConvertConfig
from megatron_ssd.export.convert import run_convert
from megatron_ssd.models.build import build_model
from megatron_ssd.models.hf_checkpoint import load_hf_weights, map_parameters
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import process_groups
from megatron_ssd.training.checkpoint import with_own_norm_states
from tests.helpers.devices import without_gpu
from tests.helpers.tiny_hf import MODELS, write_hf_folder
from tests.helpers.training_run import CPU

pytest.importorskip("transformer_engine.pytorch", reason="needs TransformerEngine: make test-te")
pytestmark = without_gpu

ONE = ParallelConfig()
FUSED = PrecisionConfig(params_dtype="fp32")
OWN = dataclasses.replace(FUSED, transformer_engine=False)
NAMES = ["llama", "qwen2_drawn", "qwen3_tied", "qwen3_moe"]


def built(model: ModelConfig, precision: PrecisionConfig, *, grouped: bool = True) -> GPTModel:
    """A model on the CPU. TransformerEngine's layers can be built there, and cannot compute."""
    with mock.patch.object(torch.cuda, "is_available", return_value=True):
        (chunk,) = build_model(model, ONE, precision, moe=MoeConfig(grouped_gemm=grouped), device="cpu", seed=None)
    return chunk


def weights(chunk: GPTModel, model: ModelConfig) -> dict[tuple[str, ...], torch.Tensor]:
    """The parameters by the Hugging Face weights that they are made of, since names differ."""
    return {mapped.hf_names: mapped.parameter.detach().clone() for mapped in map_parameters(chunk, model)}


def assert_equal(one: dict[tuple[str, ...], torch.Tensor], other: dict[tuple[str, ...], torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [names for names in one if not torch.equal(one[names], other[names])] == []


@pytest.mark.parametrize("grouped", [True, False], ids=["grouped", "sequential"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("saved", "loaded"), [(OWN, FUSED), (FUSED, OWN)], ids=["to fused", "from fused"])
def test_training_can_resume_with_the_other_layers(
    name: str, saved: PrecisionConfig, loaded: PrecisionConfig, grouped: bool, tmp_path: Path
) -> None:
    model = MODELS[name]
    with process_groups(ONE, device=prepare_device(CPU)):
        before, after = built(model, saved, grouped=grouped), built(model, loaded, grouped=grouped)
        expected = {names: torch.randn_like(value) for names, value in weights(before, model).items()}
        with torch.no_grad():
            for mapped in map_parameters(before, model):
                mapped.parameter.copy_(expected[mapped.hf_names])
        dist_checkpointing.save(before.sharded_state_dict(), str(tmp_path))
        after.load_state_dict(dist_checkpointing.load(with_own_norm_states(after.sharded_state_dict()), str(tmp_path)))
        assert_equal(weights(after, model), expected)


def test_kinds_of_layers_have_their_parameters_in_different_orders() -> None:
    """So shards of gradient buckets (``dp_reshardable``) fit only the kind of layers that they were saved from."""
    model = MODELS["qwen3_moe"]
    with process_groups(ONE, device=prepare_device(CPU)):
        chunks = built(model, OWN), built(model, FUSED), built(model, FUSED, grouped=False)
        orders = {tuple(weights(chunk, model)) for chunk in chunks}
        kinds = {(chunk.config.transformer_impl, chunk.config.moe_grouped_gemm) for chunk in chunks}
    assert len(orders) == len(kinds) == 3


@pytest.mark.parametrize("name", NAMES)
def test_megatron_core_loads_a_converted_checkpoint_into_both_kinds_of_layers(name: str, tmp_path: Path) -> None:
    folder, converted = tmp_path / "hf", tmp_path / "megatron"
    model = write_hf_folder(folder, MODELS[name])
    run_convert(ConvertConfig(direction="hf_to_megatron", hf=str(folder), megatron=str(converted)))
    with process_groups(ONE, device=prepare_device(CPU)):
        for layers in (OWN, FUSED):
            loaded, reference = built(model, layers), built(model, layers)
            state = loaded.sharded_state_dict()
            loaded.load_state_dict(dist_checkpointing.load(state, str(converted / "iter_0000000")))
            load_hf_weights([reference], model, ONE, folder)
            assert_equal(weights(loaded, model), weights(reference, model))
