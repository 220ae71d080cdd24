"""Tests that TransformerEngine's layers hold what Megatron-Core's own hold, in every family and kind of layout."""

from __future__ import annotations

import dataclasses
import itertools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from megatron.core.fp8_utils import get_fp8_context, get_fp8_recipe

from megatron_ssd.cli.compose import compose_config
from megatron_ssd.config.model import MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import Fp8Config, Fp8Recipe, PrecisionConfig
from megatron_ssd.models.mappings import parameter_mappings
from megatron_ssd.models.transformer_config import transformer_config
from megatron_ssd.planner.dry_run import LOCAL_LAYERS
from tests.helpers.built_ranks import built_ranks, check_transformer_engine, chunks_of_ranks
from tests.helpers.devices import without_gpu
from tests.helpers.tiny_hf import MODELS
from tests.helpers.training_run import MOE

pytest.importorskip("transformer_engine.pytorch", reason="needs TransformerEngine: make test-te")

ONE, BF16 = ParallelConfig(), PrecisionConfig()
GROUPED, SEQUENTIAL = MoeConfig(grouped_gemm=True), MoeConfig(grouped_gemm=False)
FAMILIES = {
    "llama": "llama", "mistral": "mistral_drawn", "qwen2": "qwen2_drawn", "qwen3": "qwen3",
    "tied": "qwen3_tied", "padded": "qwen3_odd",
}  # fmt: skip
TP2 = {"tensor_model_parallel_size": 2}
TP2_SP = {**TP2, "sequence_parallel": True}
PP2 = {"pipeline_model_parallel_size": 2}
VPP2 = {**PP2, "virtual_pipeline_model_parallel_size": 2}
CP2 = {"context_parallel_size": 2}
EP2 = {"expert_model_parallel_size": 2}
DENSE_LAYOUTS = {
    "single": {},
    "tp2": TP2,
    "tp2_sp": TP2_SP,
    "pp2": PP2,
    "pp2_vpp2": VPP2,
    "tp2_pp2_cp2": TP2 | PP2 | CP2,
}
MOE_LAYOUTS = {
    "single": {}, "ep2": EP2, "tp2_ep2": TP2_SP | EP2, "tp2_etp2": TP2_SP | {"expert_tensor_parallel_size": 2},
    "pp2_ep2": PP2 | EP2, "pp2_vpp2": VPP2, "cp2_ep2": CP2 | EP2,
}  # fmt: skip


def layout(sizes: dict[str, Any]) -> ParallelConfig:
    return ParallelConfig(world_size=8 if sizes else 1, **sizes)


@pytest.mark.parametrize("sizes", DENSE_LAYOUTS.values(), ids=DENSE_LAYOUTS)
@pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES)
def test_a_dense_family_holds_the_same_with_both_kinds_of_layers(name: str, sizes: dict[str, Any]) -> None:
    model = dataclasses.replace(MODELS[name], num_hidden_layers=4)  # some families draw fewer
    check_transformer_engine(model, layout(sizes), BF16, GROUPED)


@pytest.mark.parametrize("moe", [GROUPED, SEQUENTIAL], ids=["grouped", "sequential"])
@pytest.mark.parametrize("sizes", MOE_LAYOUTS.values(), ids=MOE_LAYOUTS)
def test_experts_hold_the_same_with_both_kinds_of_layers(sizes: dict[str, Any], moe: MoeConfig) -> None:
    check_transformer_engine(MODELS["qwen3_moe"], layout(sizes), BF16, moe)


@pytest.mark.parametrize("name", [*FAMILIES.values(), "qwen3_moe"])
def test_every_line_of_the_weight_table_is_in_use(name: str) -> None:
    model = MODELS[name]
    layout = ParallelConfig(world_size=2, pipeline_model_parallel_size=2)  # a tied output layer is a copy then
    used = {
        pattern
        for precision, moe in itertools.product([LOCAL_LAYERS, BF16], [GROUPED, SEQUENTIAL])
        for built in built_ranks(model, layout, precision, moe)
        for pattern in built.patterns
    }
    assert used == {mapping.megatron for mapping in parameter_mappings(model)}


@pytest.mark.parametrize("sizes", [{}, PP2, VPP2], ids=["single", "pp2", "pp2_vpp2"])
@pytest.mark.parametrize("recipe", ["tensorwise", "blockwise", "mxfp8"])
@pytest.mark.parametrize(("first", "last"), [(0, 0), (1, 2), (2, 0)])
def test_the_configured_layers_at_both_ends_stay_in_bf16(
    recipe: Fp8Recipe, first: int, last: int, sizes: dict[str, Any]
) -> None:
    model = dataclasses.replace(MODELS["qwen3_moe"], num_hidden_layers=8)
    precision = PrecisionConfig(fp8=Fp8Config(recipe=recipe, bf16_layers_at_start=first, bf16_layers_at_end=last))
    in_fp8 = {}
    for chunks in chunks_of_ranks(model, layout(sizes), precision, GROUPED):
        for chunk in chunks:
            for layer in chunk.decoder.layers:
                number = layer.layer_number - 1
                in_fp8[number] = not isinstance(get_fp8_context(chunk.config, number), nullcontext)
    assert in_fp8 == {number: first <= number < 8 - last for number in range(8)}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fp8_delayed", "delayed"),
        ("fp8_tensorwise", "float8_current_scaling"),
        ("fp8_blockwise", "float8_block_scaling"),
        ("mxfp8", "mxfp8"),
    ],
)
def test_a_recipe_is_that_of_transformer_engine(name: str, kind: str) -> None:
    config = compose_config(["model=qwen3_30b", f"precision={name}"])
    assert config.model is not None
    assert config.precision.fp8 is not None
    recipe = get_fp8_recipe(transformer_config(config.model, config.parallel, config.precision, config.moe))
    assert getattr(recipe, kind)()
    assert recipe.fp8_format.name.lower() == config.precision.fp8.number_format
    if kind == "delayed":
        assert (recipe.margin, recipe.amax_history_len) == (0, 1024)


@without_gpu
def test_questions_for_cuda_are_answered_only_while_layers_are_built() -> None:
    (chunks,) = chunks_of_ranks(MOE, ONE, BF16, GROUPED)
    assert type(chunks[0].decoder.layers[0].self_attention.linear_qkv).__name__ == "TELayerNormColumnParallelLinear"
    assert not torch.cuda.is_available()
    assert torch.zeros(2, device=torch.cuda.current_device()).device.type == "cpu"
