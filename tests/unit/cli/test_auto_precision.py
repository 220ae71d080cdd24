"""Tests which number format a model gets on which GPU, and that a given one counts."""

from __future__ import annotations

import pytest

from megatron_ssd.cli.compose import compose_config
from megatron_ssd.nvidia_smi import Capability
from megatron_ssd.planner.plan import numbers_reason
from megatron_ssd.runtime.hardware import check_precision

MODELS = ("qwen3_30b", "qwen3_30b_thinking")


def recipe(*overrides: str, capability: Capability | None) -> str | None:
    fp8 = compose_config(overrides, capability=lambda: capability).precision.fp8
    return fp8.recipe if fp8 else None


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("capability", "expected"),
    [((10, 0), "mxfp8"), ((10, 3), "mxfp8"), ((9, 0), "blockwise"), ((8, 9), None), ((12, 0), None), (None, None)],
)
def test_the_large_models_train_in_the_fp8_of_the_gpu(
    model: str, capability: Capability | None, expected: str | None
) -> None:
    assert recipe(f"+model={model}", capability=capability) == expected
    if capability is not None:
        config = compose_config([f"+model={model}"], capability=lambda: capability)
        check_precision(config.precision, capability, (13, 0))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("precision=bf16", None),
        ("precision=fp8_tensorwise", "tensorwise"),
        ("precision.fp8=null", None),
        ("precision.params_dtype=fp32", None),
        ("precision.transformer_engine=false", None),
        ("experiment=h200_64k", None),
        ("precision=fp8_blockwise", "blockwise"),
        ("precision.recompute=full", "mxfp8"),  # is not a number format
    ],
)
def test_a_given_format_counts(given: str, expected: str | None) -> None:
    overrides = [given] if given.startswith("experiment") else ["+model=qwen3_30b", given]
    config = compose_config(overrides, capability=lambda: (10, 0))
    assert (config.precision.fp8.recipe if config.precision.fp8 else None) == expected
    assert config.precision.auto == (expected == "mxfp8")


def test_other_models_keep_the_default_and_take_auto() -> None:
    assert recipe("model=qwen3_4b", capability=(10, 0)) is None
    assert recipe("model=qwen3_4b", "precision=auto", capability=(10, 0)) == "mxfp8"


def test_the_reason_names_the_capability_or_that_there_was_none() -> None:
    chosen = compose_config(["model=qwen3_30b"], capability=lambda: (9, 0)).precision
    assert "FP8 blockwise, chosen for compute capability 9.0" in numbers_reason(chosen, (9, 0))
    assumed = compose_config(["model=qwen3_30b"], capability=lambda: None).precision
    assert numbers_reason(assumed, None).startswith("precision: bf16, assumed, since no GPU is visible")
    given = compose_config(["model=qwen3_30b", "precision=mxfp8"]).precision
    assert numbers_reason(given, (10, 0)) == "precision: bf16 with FP8 mxfp8, as configured"
