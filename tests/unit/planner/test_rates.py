"""Tests the table of measured rates, the rates that are chosen from it, and hours and scale that follow from them."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ssd.cli.compose import CONFIG_DIR, compose_config
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.config.run import needed
from megatron_ssd.planner.duration import duration, duration_text
from megatron_ssd.planner.flops import active_weights, flops_of
from megatron_ssd.planner.gpus import GPUS
from megatron_ssd.planner.layout import count_layout
from megatron_ssd.planner.plan import Samples, iteration_flops
from megatron_ssd.planner.rates import OWN, RATES, Rate, nearest_rates
from megatron_ssd.planner.scale import scaled

ROOT = CONFIG_DIR.parent


def shape(name: str) -> ModelConfig:
    """The model of a rate, such as ``qwen3_1.7b, 12 layers``, which had a vocabulary of 32,768."""
    name, _, layers = name.partition(", ")
    model = needed(compose_config([f"model={'qwen3_4b_instruct' if name == 'qwen3_4b' else name}"]).model, "model")
    if layers:
        model = dataclasses.replace(model, num_hidden_layers=int(layers.split()[0]), vocab_size=32_768)
    return model


MODELS = {name: shape(name) for name in dict.fromkeys(rate.model for rate in RATES)}


@pytest.mark.parametrize("rate", RATES, ids=lambda rate: f"{rate.model} {rate.gpu} {rate.tflops:g}")
def test_tokens_and_operations_of_a_rate_agree(rate: Rate) -> None:
    model = MODELS[rate.model]
    assert rate.is_moe == model.is_moe
    assert rate.weights == pytest.approx(active_weights(model) / 1e9, rel=1e-3)
    per_token = flops_of(model, [rate.segment_tokens]) / rate.segment_tokens
    assert rate.tflops == pytest.approx(rate.tokens_per_second * per_token / 1e12, rel=0.015)
    assert rate.source.startswith("https://") or (ROOT / rate.source).is_file()
    assert 0 < rate.tflops < rate.peak


def test_own_rates_are_those_of_the_raw_results() -> None:
    records = json.loads((ROOT / OWN).read_text(encoding="utf-8"))
    measured = {(round(r["tokens_per_second"]), round(r["tflops"], 1)) for r in records["speed"] + records["memory"]}
    own = [rate for rate in RATES if rate.source == OWN]
    assert own
    for rate in own:
        assert (rate.tokens_per_second, rate.tflops) in measured


@pytest.mark.parametrize(
    ("model", "gpu", "precision", "segment", "expected"),
    [
        ("qwen3_30b", "B200", "mxfp8", 4096, {223, 619}),
        ("qwen3_30b", "B200", "mxfp8", 65_536, {197.7, 286.8}),
        ("qwen3_30b", "H100", "fp8_blockwise", 2048, {118, 206}),
        ("qwen3_30b", "H200", "bf16", 65_536, {152.3, 164.5}),  # the second is of the next length class
        ("qwen3_30b", "H100", "bf16", 4096, {277, 118, 206}),  # the others are FP8
        ("llama31_8b", "B200", "fp8_tensorwise", 8192, {1519, 1576}),
        ("llama31_8b", "L4", "bf16", 8192, set()),
        ("qwen3_30b", "A100", "bf16", 8192, set()),
    ],
)
def test_the_nearest_rates_are_chosen(model: str, gpu: str, precision: str, segment: int, expected: set[float]) -> None:
    config = compose_config([f"model={model}", f"precision={precision}"])
    rates = nearest_rates(needed(config.model, "model"), GPUS[gpu], config.precision, segment_tokens=segment)
    assert {rate.tflops for rate in rates} == expected
    assert [rate.tflops for rate in rates] == sorted(expected)


@given(
    model=st.sampled_from(list(MODELS.values())),
    gpu=st.sampled_from(["H100", "H200", "B200", "B300"]),
    segment=st.integers(1, 10**6),
)
def test_rates_are_of_the_same_family_and_generation_and_give_a_range(
    model: ModelConfig, gpu: str, segment: int
) -> None:
    rates = nearest_rates(model, GPUS[gpu], PrecisionConfig(), segment_tokens=segment)
    assert len(rates) > 1
    for rate in rates:
        assert rate.is_moe == model.is_moe
        assert GPUS[rate.gpu].capability[0] == GPUS[gpu].capability[0]


def test_hours_are_operations_over_the_rates() -> None:
    config = compose_config(["model=qwen3_30b", "precision=mxfp8"])
    samples = Samples(sequences=100, described="", segment_length=4096)
    found = duration(config, samples, GPUS["B200"])
    assert found is not None
    flops = 2500 * iteration_flops(needed(config.model, "model"), config.training, samples)
    assert found.fastest == pytest.approx(flops / (619e12 * 8) / 3600)
    assert found.slowest == pytest.approx(flops / (223e12 * 8) / 3600)
    text = duration_text(config, samples, GPUS["B200"])
    assert all(rate.source in text for rate in found.rates)
    assert "unknown" in duration_text(config, samples, GPUS["A100"])


def test_more_gpus_are_replicas_of_the_layout() -> None:
    config = compose_config(["experiment=b200_64k"])
    layout = count_layout(needed(config.model, "model"), config.parallel)
    few, many = (scaled(config, layout, GPUS["B200"], num_gpus=count) for count in (8, 4096))
    assert many.config.parallel.data_parallel_size == 512
    assert many.config.training.global_batch_size == 512, "a replica gets at least one sample"
    assert few.hours is not None
    assert many.hours is not None
    assert many.hours.fastest == pytest.approx(few.hours.fastest / 512, rel=0.01)
    assert many.memory.optimizer < few.memory.optimizer / 100
    # Experts are not replicated on 8 GPUs, the rest is.
    assert few.exchanged == pytest.approx(
        6 * 7 / 8 * (layout.ranks[0].num_parameters - layout.ranks[0].num_expert_parameters)
    )
    assert few.exchanged < many.exchanged < 6 * layout.ranks[0].num_parameters
