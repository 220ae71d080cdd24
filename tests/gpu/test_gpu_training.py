"""TransformerEngine's layers, fused kernels, recomputation and packing change losses by no more than rounding.

The tolerances are estimates until a GPU has run them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ssd.config.model import ModelConfig, MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import process_groups
from megatron_ssd.training.step import forward_step
from megatron_ssd.training.trainer import build_trainer
from tests.gpu.short_runs import BF16, DEVICE, LOCAL, WIDE_DENSE, WIDE_MOE, losses, sequences
from tests.helpers.training_run import training_config


@pytest.mark.usefixtures("transformer_engine")
@pytest.mark.parametrize("model", [WIDE_DENSE, WIDE_MOE], ids=lambda model: model.name)
def test_transformer_engine_equals_local_layers_in_bf16(progressions: Path, model: ModelConfig) -> None:
    expected = losses(progressions, model, LOCAL)
    assert losses(progressions, model, BF16) == pytest.approx(expected, rel=0.01)
    if model.is_moe:
        sequential = losses(progressions, model, BF16, MoeConfig(grouped_gemm=False))
        assert sequential == pytest.approx(expected, rel=0.01)


@pytest.mark.usefixtures("transformer_engine")
@pytest.mark.parametrize("model", [WIDE_DENSE, WIDE_MOE], ids=lambda model: model.name)
def test_fused_kernels_do_not_change_losses(progressions: Path, model: ModelConfig) -> None:
    unfused = dataclasses.replace(BF16, gradient_accumulation_fusion=False, cross_entropy_loss_fusion=False)
    expected = losses(progressions, model, unfused)
    assert losses(progressions, model, BF16) == pytest.approx(expected, rel=3e-3)


@pytest.mark.usefixtures("transformer_engine")
@pytest.mark.parametrize("recompute", [("full", ("core_attn",)), ("selective", ("layernorm", "moe_act")),
                                       ("selective", ("layernorm", "moe"))], ids=str)  # fmt: skip
def test_recomputation_does_not_change_losses(progressions: Path, recompute: tuple[Any, Any]) -> None:
    again = PrecisionConfig(recompute=recompute[0], recompute_modules=recompute[1])
    expected = losses(progressions, WIDE_MOE, BF16)
    assert losses(progressions, WIDE_MOE, again) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("precision", [LOCAL, BF16], ids=["local", "TransformerEngine"])
def test_packed_samples_equal_single_samples(
    progressions: Path, precision: PrecisionConfig, request: pytest.FixtureRequest
) -> None:
    # Loss of the first iteration over the same samples, packed or one per sequence.
    if precision.transformer_engine:
        request.getfixturevalue("transformer_engine")
    config = training_config(
        progressions, model=WIDE_DENSE, precision=precision, cluster=DEVICE,
        training={"global_batch_size": 1, **sequences(WIDE_DENSE)},
    )  # fmt: skip
    with process_groups(ParallelConfig(), device=prepare_device(DEVICE, precision)):
        trainer = build_trainer(config, progressions / "none", DEVICE.device)
        dataset = trainer.source.dataset
        model = trainer.state.chunks[0]
        (batch,) = trainer.source.micro_batches(trainer.source.plan(1))
        with torch.no_grad():
            together = _loss_sum(model, batch)
            apart = 0.0
            for index in range(len(dataset.lengths_in_sequence(0, 0))):
                alone = trainer.source.batch([dataset.single_sample_sequence(0, 0, index, 512)])
                apart += _loss_sum(model, alone)
    assert together == pytest.approx(apart, rel=2e-3)


def _loss_sum(model: torch.nn.Module, batch: Any) -> float:
    output, summed = forward_step(iter([batch]), model)
    return float(summed(output)[0])
