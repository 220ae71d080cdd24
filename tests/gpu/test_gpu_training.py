"""The CPU suite's parity cases on a GPU: against the CPU, TransformerEngine's layers, FP8, packed sequences.

Written before a GPU was available: tolerances of bf16 and FP8 are estimates until a run confirms them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ssd.config.model import ModelConfig, MoeConfig
from megatron_ssd.config.parallel import ClusterConfig, ParallelConfig
from megatron_ssd.config.precision import Fp8Config, Fp8Recipe, PrecisionConfig
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.hardware import check_precision
from megatron_ssd.runtime.process_groups import process_groups
from megatron_ssd.training.trainer import build_trainer
from tests.helpers.paths import ROOT
from tests.helpers.training_run import DENSE, EXACT, EXACT_ROUTER, MOE, training_config

CUDA = ClusterConfig(device="cuda")
BF16, LOCAL = PrecisionConfig(), PrecisionConfig(transformer_engine=False)
# FP8 needs dimensions that are multiples of up to 128, so these are wider than the CPU suite's.
WIDE: dict[str, Any] = {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
                        "head_dim": 64, "intermediate_size": 512, "max_position_embeddings": 512}  # fmt: skip
WIDE_DENSE = dataclasses.replace(DENSE, **WIDE)
WIDE_MOE = dataclasses.replace(MOE, **WIDE, moe_intermediate_size=256)


def losses(root: Path, model: ModelConfig, precision: PrecisionConfig, steps: int = 10, **changes: Any) -> list[float]:
    """Losses of the first steps on this GPU."""
    training = {"train_iters": max(steps, 3)} | changes.pop("training", {})
    config = training_config(root, model=model, precision=precision, cluster=CUDA, training=training, **changes)
    with process_groups(ParallelConfig(), device=prepare_device(CUDA, precision, config.moe)):
        trainer = build_trainer(config, root / "none", "cuda")
        return [trainer.step().loss for _ in range(steps)]


def wide(**more: Any) -> dict[str, Any]:
    """A sequence length that every FP8 recipe supports."""
    return {"training": {"seq_length": 512, "micro_batch_size": 1, **more}}


@pytest.mark.parametrize("model", [DENSE, MOE], ids=lambda model: model.name)
def test_fp32_losses_equal_those_on_the_cpu(progressions: Path, model: ModelConfig, tmp_path: Path) -> None:
    # The same training with the GPU hidden, so that the CPU patches are active.
    script = (
        "import json, sys; from pathlib import Path; from tests.gpu.on_cpu import losses_on_cpu; "
        "print(json.dumps(losses_on_cpu(Path(sys.argv[1]), sys.argv[2])))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(progressions), model.name],
        cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = json.loads(result.stdout.splitlines()[-1])
    assert losses(progressions, model, EXACT, moe=EXACT_ROUTER) == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("transformer_engine")
@pytest.mark.parametrize("model", [WIDE_DENSE, WIDE_MOE], ids=lambda model: model.name)
def test_transformer_engine_equals_local_layers_in_bf16(progressions: Path, model: ModelConfig) -> None:
    expected = losses(progressions, model, LOCAL, **wide())
    assert losses(progressions, model, BF16, **wide()) == pytest.approx(expected, rel=0.01)
    if model.is_moe:
        sequential = MoeConfig(grouped_gemm=False)
        assert losses(progressions, model, BF16, moe=sequential, **wide()) == pytest.approx(expected, rel=0.01)


@pytest.mark.usefixtures("transformer_engine")
@pytest.mark.parametrize("model", [WIDE_DENSE, WIDE_MOE], ids=lambda model: model.name)
def test_fused_kernels_do_not_change_losses(progressions: Path, model: ModelConfig) -> None:
    unfused = dataclasses.replace(BF16, gradient_accumulation_fusion=False, cross_entropy_loss_fusion=False)
    expected = losses(progressions, model, unfused, **wide())
    assert losses(progressions, model, BF16, **wide()) == pytest.approx(expected, rel=3e-3)


@pytest.mark.usefixtures("transformer_engine")
@pytest.mark.parametrize("recompute", [("full", ("core_attn",)), ("selective", ("layernorm", "moe_act")),
                                       ("selective", ("layernorm", "moe"))], ids=str)  # fmt: skip
def test_recomputation_does_not_change_losses(progressions: Path, recompute: tuple[Any, Any]) -> None:
    again = PrecisionConfig(recompute=recompute[0], recompute_modules=recompute[1])
    expected = losses(progressions, WIDE_MOE, BF16, **wide())
    assert losses(progressions, WIDE_MOE, again, **wide()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.usefixtures("transformer_engine")
@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise", "mxfp8"])
@pytest.mark.parametrize("model", [WIDE_DENSE, WIDE_MOE], ids=lambda model: model.name)
def test_fp8_learns_like_bf16(progressions: Path, model: ModelConfig, recipe: Fp8Recipe) -> None:
    precision = PrecisionConfig(fp8=Fp8Config(recipe=recipe))
    assert torch.version.cuda is not None
    major, minor, *_ = map(int, torch.version.cuda.split("."))
    try:
        check_precision(precision, torch.cuda.get_device_capability(), (major, minor))
    except ValueError as missing:
        pytest.skip(str(missing))
    steps = 60
    bf16 = losses(progressions, model, BF16, steps, **wide())
    fp8 = losses(progressions, model, precision, steps, **wide())
    assert sum(fp8[-10:]) / 10 == pytest.approx(sum(bf16[-10:]) / 10, rel=0.05)
    assert fp8[-1] < fp8[0] - 0.3


@pytest.mark.usefixtures("transformer_engine")
def test_first_and_last_layers_in_bf16(progressions: Path) -> None:
    ends = Fp8Config(recipe="tensorwise", bf16_layers_at_start=1, bf16_layers_at_end=1)
    curve = losses(progressions, WIDE_DENSE, PrecisionConfig(fp8=ends), **wide())
    assert curve == pytest.approx(losses(progressions, WIDE_DENSE, BF16, **wide()), rel=0.02)


@pytest.mark.usefixtures("transformer_engine")
@pytest.mark.parametrize("precision", [LOCAL, BF16], ids=["local", "TransformerEngine"])
def test_packed_samples_equal_single_samples(progressions: Path, precision: PrecisionConfig) -> None:
    # Loss of the first iteration over the same samples, packed or one per sequence.
    packed = wide(packing="greedy", batch_unit="packed_sequences", global_batch_size=1)
    config = training_config(progressions, model=WIDE_DENSE, precision=precision, cluster=CUDA, **packed)
    with process_groups(ParallelConfig(), device=prepare_device(CUDA, precision)):
        trainer = build_trainer(config, progressions / "none", "cuda")
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
    from megatron_ssd.training.step import forward_step

    output, summed = forward_step(iter([batch]), model)
    return float(summed(output)[0])
