"""Training with FP8 products learns like training in bf16. The tolerances are estimates until a GPU has run them."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ssd.config.model import ModelConfig, MoeConfig
from megatron_ssd.config.precision import Fp8Config, Fp8Recipe, PrecisionConfig
from megatron_ssd.errors import UserError
from megatron_ssd.runtime.hardware import check_hardware
from tests.gpu.short_runs import BF16, WIDE_DENSE, WIDE_MOE, losses

pytestmark = pytest.mark.usefixtures("transformer_engine")


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise", "mxfp8"])
@pytest.mark.parametrize("model", [WIDE_DENSE, WIDE_MOE], ids=lambda model: model.name)
def test_fp8_learns_like_bf16(progressions: Path, model: ModelConfig, recipe: Fp8Recipe) -> None:
    precision = PrecisionConfig(fp8=Fp8Config(recipe=recipe))
    try:
        check_hardware(precision, MoeConfig())
    except UserError as missing:
        pytest.skip(str(missing))
    bf16, fp8 = losses(progressions, model, BF16), losses(progressions, model, precision)
    assert sum(fp8[-5:]) / 5 == pytest.approx(sum(bf16[-5:]) / 5, rel=0.05)
    assert fp8[-1] < fp8[0] - 0.3


def test_first_and_last_layers_in_bf16(progressions: Path) -> None:
    ends = Fp8Config(recipe="tensorwise", bf16_layers_at_start=1, bf16_layers_at_end=1)
    curve = losses(progressions, WIDE_DENSE, PrecisionConfig(fp8=ends))
    assert curve == pytest.approx(losses(progressions, WIDE_DENSE, BF16), rel=0.03)
