"""Tests for the checks of configurations against the hardware; they do not need a GPU."""

import re
from typing import Literal

import pytest

from megatron_ssd.config.model import MoeConfig
from megatron_ssd.config.precision import Fp8Config, PrecisionConfig
from megatron_ssd.errors import ConfigError, UserError
from megatron_ssd.runtime.hardware import (
    _accepted_transformer_engine,
    check_dispatcher,
    check_fusion,
    check_precision,
    check_transformer_engine,
)

CUDA_13 = (13, 0)
OR_EXPERIMENT = "or take an experiment for this GPU (docs/guides/recipes.md)"


def fp8(recipe: str) -> PrecisionConfig:
    return PrecisionConfig(fp8=Fp8Config(recipe=recipe))  # type: ignore[arg-type]


def test_mxfp8_on_hopper_names_both_capabilities_and_a_fix() -> None:
    with pytest.raises(ConfigError) as caught:
        check_precision(fp8("mxfp8"), (9, 0), CUDA_13)
    assert str(caught.value) == (
        "precision.fp8.recipe = mxfp8: needs compute capability 10.0 and this device has 9.0; set "
        f"precision=fp8_blockwise, {OR_EXPERIMENT}"
    )


@pytest.mark.parametrize(
    ("recipe", "capability", "fix"),
    [
        ("delayed", (8, 0), "set precision=bf16"),
        ("tensorwise", (8, 6), "set precision=bf16"),
        ("blockwise", (8, 9), f"set precision=fp8_tensorwise, {OR_EXPERIMENT}"),
        ("mxfp8", (8, 9), f"set precision=fp8_tensorwise, {OR_EXPERIMENT}"),
        ("mxfp8", (12, 0), "set precision=fp8_tensorwise"),
    ],
)
def test_an_unsupported_recipe_is_refused(recipe: str, capability: tuple[int, int], fix: str) -> None:
    with pytest.raises(ConfigError, match=f"precision.fp8.recipe = {recipe}: .*; {re.escape(fix)}$"):
        check_precision(fp8(recipe), capability, CUDA_13)


@pytest.mark.parametrize(
    ("recipe", "capability"),
    [("delayed", (8, 9)), ("tensorwise", (9, 0)), ("blockwise", (9, 0)), ("blockwise", (10, 0)), ("mxfp8", (10, 3))],
)
def test_a_supported_recipe_passes(recipe: str, capability: tuple[int, int]) -> None:
    check_precision(fp8(recipe), capability, CUDA_13)


def test_blockwise_fp8_with_an_old_cuda_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"needs CUDA 12\.9 and this torch is built for 12\.8; set precision=fp8_tensorwise"
    ):
        check_precision(fp8("blockwise"), (9, 0), (12, 8))


def test_bf16_needs_ampere() -> None:
    with pytest.raises(ConfigError, match=r"params_dtype = bf16: needs compute capability 8\.0"):
        check_precision(PrecisionConfig(), (7, 5), CUDA_13)


@pytest.mark.parametrize("version", [None, "2.8.1", "2.12.0", "1.13"])
def test_an_unsupported_version_of_transformer_engine_is_refused(version: str | None) -> None:
    with pytest.raises(UserError) as caught:
        check_transformer_engine(version, accepted="<2.12.0,>=2.9.0a0")
    assert "\n" not in str(caught.value)
    assert "precision.transformer_engine=false" in str(caught.value)
    assert (version or "not installed") in str(caught.value)


@pytest.mark.parametrize("version", ["2.9.0", "2.11.0", "2.10.0.post1", "2.9.0+abc"])
def test_a_supported_version_of_transformer_engine_passes(version: str) -> None:
    check_transformer_engine(version, accepted="<2.12.0,>=2.9.0a0")


def test_the_supported_versions_are_those_of_the_installed_megatron_core() -> None:
    accepted = _accepted_transformer_engine()
    check_transformer_engine("2.10.0", accepted=accepted)
    with pytest.raises(UserError, match=r">=2\.9"):
        check_transformer_engine("2.8", accepted=accepted)


@pytest.mark.parametrize("dispatcher", ["deepep", "hybridep"])
def test_a_dispatcher_whose_kernels_are_missing_is_refused(dispatcher: Literal["deepep", "hybridep"]) -> None:
    moe = MoeConfig(dispatcher=dispatcher)
    with pytest.raises(UserError, match=f"moe.dispatcher = {dispatcher}: the package deep_ep.*dispatcher=alltoall"):
        check_dispatcher(moe, has_deep_ep=dispatcher == "hybridep", has_hybrid_ep=False)
    check_dispatcher(moe, has_deep_ep=True, has_hybrid_ep=dispatcher == "hybridep")


def test_fused_gradients_without_a_kernel_are_refused() -> None:
    local = PrecisionConfig(transformer_engine=False, gradient_accumulation_fusion=True)
    with pytest.raises(UserError, match="fused_weight_gradient_mlp_cuda, which is not installed"):
        check_fusion(local, has_kernel=False)
    check_fusion(local, has_kernel=True)
    check_fusion(PrecisionConfig(), has_kernel=False)
    check_fusion(PrecisionConfig(transformer_engine=False), has_kernel=False)
