"""Tests for the number of floating-point operations of a model, and for the peaks that it is compared with."""

import dataclasses

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from megatron_ssd.cli.compose import compose_config
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.precision import Fp8Config, PrecisionConfig
from megatron_ssd.planner.flops import active_weights, flops_of
from megatron_ssd.planner.gpus import GPUS, gpu_of, peak_tflops
from tests.helpers.tiny_hf import MODELS, write_hf_folder

LENGTH = 32


def counted(model: ModelConfig, folder, *, backward: bool) -> int:  # type: ignore[no-untyped-def]
    """Operations that PyTorch counts for one sequence of ``LENGTH`` tokens, with the full attention matrix."""
    write_hf_folder(folder, model)
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager"
    )
    tokens = torch.arange(LENGTH)[None] % model.vocab_size
    with FlopCounterMode(display=False) as counter:
        loss = hf_model(tokens, labels=tokens).loss
        if backward:
            loss.backward()
    return counter.get_total_flops()


def full_squares(model: ModelConfig) -> float:
    """Operations of eager attention above the diagonal, which it computes before it applies the mask."""
    above_the_diagonal = LENGTH * (LENGTH - 1) // 2
    return 2 * 2 * model.num_attention_heads * model.head_dim * model.num_hidden_layers * above_the_diagonal


@pytest.mark.parametrize("name", ["qwen3", "qwen3_tied", "qwen3_moe", "llama"])
@pytest.mark.parametrize("passes", [1, 3])
def test_operations_equal_pytorchs_count(name: str, passes: int, tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = MODELS[name]
    expected = passes / 3 * flops_of(model, [LENGTH]) + passes * full_squares(model)
    # transformers computes rotary tables with a small matrix product: 2 x 32 x 8 of 10^7 operations, forward only.
    assert counted(model, tmp_path, backward=passes == 3) == pytest.approx(expected, rel=1e-3)


def test_one_token_of_the_30b_equals_a_hand_computation() -> None:
    model = compose_config(["model=qwen3_30b"]).model
    assert model is not None
    layer = 2048 * 4096 * 2 + 2 * 2048 * 512 + 2048 * 128 + 8 * 3 * 2048 * 768
    assert active_weights(model) == 48 * layer + 2048 * 151936 == 3_041_656_832
    one_pair = 4 * 32 * 128 * 48
    assert flops_of(model, [1]) == 3 * (2 * 3_041_656_832 + one_pair)
    assert flops_of(model, [65536]) == 3 * (2 * 3_041_656_832 * 65536 + one_pair * 65536 * 65537 // 2)


def test_packed_segments_count_separately_and_only_active_experts_are_counted() -> None:
    model = MODELS["qwen3_moe"]
    assert flops_of(model, [8, 24]) == flops_of(model, [8]) + flops_of(model, [24]) < flops_of(model, [32])
    assert flops_of(model, []) == 0
    more = dataclasses.replace(model, num_experts=64)
    router = model.num_hidden_layers * model.hidden_size * (64 - 4)
    assert active_weights(more) == active_weights(model) + router


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA B300 SXM6 AC", "B300"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GB200", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_devices_are_recognized_by_their_driver_name(device: str, name: str | None) -> None:
    assert gpu_of(device) == (GPUS[name] if name else None)


def test_the_peak_depends_on_the_precision() -> None:
    assert peak_tflops("NVIDIA H200", PrecisionConfig()) == 989.5
    assert peak_tflops("NVIDIA H200", PrecisionConfig(fp8=Fp8Config(recipe="blockwise"))) == 1979
    assert peak_tflops("NVIDIA A100-SXM4-80GB", PrecisionConfig(fp8=Fp8Config(recipe="delayed"))) is None
    assert peak_tflops("NVIDIA H200", PrecisionConfig(params_dtype="fp32")) is None
    assert peak_tflops("NVIDIA L40S", PrecisionConfig()) is None
