"""Tests the checks of precision, recomputation and expert settings, and what Megatron-Core receives."""

import dataclasses
from typing import Any

import pytest
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_ssd.cli.compose import compose_config
from megatron_ssd.config.model import ModelConfig, MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import FP8_ALIGNMENT, Fp8Config, PrecisionConfig
from megatron_ssd.errors import ConfigError
from megatron_ssd.models.transformer_config import _fp8, _recompute, transformer_config
from megatron_ssd.runtime.device import prepare_device
from tests.helpers.training_run import CPU, DENSE, EXACT, MOE

ONE = ParallelConfig()


def fp8(recipe: str, **more: Any) -> PrecisionConfig:
    return PrecisionConfig(fp8=Fp8Config(recipe=recipe, **more))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def qwen3_30b() -> ModelConfig:
    model = compose_config(["model=qwen3_30b"]).model
    assert model is not None
    return model


@pytest.mark.parametrize("recipe", FP8_ALIGNMENT)
def test_every_recipe_reaches_megatron_core(recipe: str) -> None:
    ends = {} if recipe == "delayed" else {"bf16_layers_at_start": 1, "bf16_layers_at_end": 2}
    own = {"margin": 1, "amax_history_len": 16, "amax_compute_algo": "most_recent"} if recipe == "delayed" else {}
    config = TransformerConfig(num_layers=8, hidden_size=64, num_attention_heads=4, bf16=True,
                               **_fp8(fp8(recipe, **ends, **own)))  # fmt: skip
    assert (config.fp8_recipe, config.fp8) == (recipe, "hybrid" if recipe in ("delayed", "tensorwise") else "e4m3")
    assert config.first_last_layers_bf16 == bool(ends)
    if ends:
        assert (config.num_layers_at_start_in_bf16, config.num_layers_at_end_in_bf16) == (1, 2)
    if own:
        assert (config.fp8_margin, config.fp8_amax_history_len, config.fp8_amax_compute_algo) == (1, 16, "most_recent")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipe": "tensorwise", "margin": 1}, "margin = 1: belongs to recipe delayed"),
        ({"recipe": "mxfp8", "amax_history_len": 4}, "amax_history_len = 4: belongs to recipe delayed"),
        ({"recipe": "delayed", "bf16_layers_at_end": 1}, "bf16_layers_at_end = 1: delayed scaling"),
        ({"recipe": "blockwise", "bf16_layers_at_start": -1}, "must not be negative"),
    ],
)
def test_settings_of_another_recipe_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Fp8Config(**settings)


def test_shapes_that_fp8_does_not_support_are_refused_with_the_multiple(qwen3_30b: ModelConfig) -> None:
    cp8 = ParallelConfig(world_size=8, context_parallel_size=8, expert_model_parallel_size=8)
    for recipe in FP8_ALIGNMENT:
        fp8(recipe).check_model(qwen3_30b, cp8, micro_batch_tokens=65536)
    with pytest.raises(ConfigError, match=r"multiples of 32 on each of 8 parts .*multiple of 256"):
        fp8("mxfp8").check_model(qwen3_30b, cp8, micro_batch_tokens=65536 - 128)
    fp8("tensorwise").check_model(qwen3_30b, cp8, micro_batch_tokens=65536 - 128)
    with pytest.raises(ConfigError, match=r"moe_intermediate_size / expert-tensor size \(192\) .*multiple of 128"):
        fp8("blockwise").check_model(
            qwen3_30b, ParallelConfig(world_size=8, expert_tensor_parallel_size=4), micro_batch_tokens=65536
        )
    layout = ParallelConfig(world_size=2, pipeline_model_parallel_size=2)
    with pytest.raises(ConfigError, match=r"bf16_layers_at_end = 30: .*\(24\)"):
        fp8("mxfp8", bf16_layers_at_end=30).check_model(qwen3_30b, layout, micro_batch_tokens=65536)


def test_recompute_needs_existing_modules() -> None:
    again = PrecisionConfig(recompute="selective", recompute_modules=("layernorm", "moe_act"))
    assert _recompute(again) == {
        "recompute_granularity": "selective", "recompute_modules": ["layernorm", "moe_act"],
    }  # fmt: skip
    with pytest.raises(ConfigError, match="moe_act are parts of a mixture of experts, and dense is a dense model"):
        again.check_model(DENSE, ONE, micro_batch_tokens=64)
    again.check_model(MOE, ONE, micro_batch_tokens=64)
    with pytest.raises(ConfigError, match="moe_act is a part of grouped experts"):
        compose_config(["model=qwen3_30b", "precision.recompute=selective", "precision.recompute_modules=[moe_act]",
                        "moe.grouped_gemm=false"])  # fmt: skip
    with pytest.raises(ConfigError, match="with TransformerEngine only"):
        dataclasses.replace(again, transformer_engine=False)
    with pytest.raises(ConfigError, match="under delayed scaling"):
        dataclasses.replace(again, fp8=Fp8Config(recipe="delayed"))


def test_settings_that_need_cuda_are_refused_on_a_cpu() -> None:
    with pytest.raises(ConfigError, match=r"moe.dispatcher = deepep: .*cluster.device is cpu"):
        compose_config(["model=tiny_moe", "cluster=cpu", "precision=fp32", "moe.dispatcher=deepep"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"aux_loss_coeff": -0.1}, "must not be negative"),
        ({"aux_loss_coeff": 0.1, "freeze_router": True}, "balances the load by training the router"),
        ({"dispatcher": "deepep", "router_dtype": "fp64"}, "carries probabilities in fp32"),
    ],
)
def test_contradicting_expert_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MoeConfig(**settings)


def test_expert_settings_reach_megatron_core() -> None:
    prepare_device(CPU)
    moe = MoeConfig(router_dtype="fp64", aux_loss_coeff=0.01, dispatcher="allgather")
    config = transformer_config(MOE, ONE, EXACT, moe)
    assert config.moe_router_dtype == "fp64"
    assert (config.moe_router_load_balancing_type, config.moe_aux_loss_coeff) == ("aux_loss", 0.01)
    assert config.moe_token_dispatcher_type == "allgather"
    assert transformer_config(MOE, ONE, EXACT).moe_router_load_balancing_type == "none"
