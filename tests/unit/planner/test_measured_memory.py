"""Tests the planned memory against the peaks that were measured on one H200 (``docs/results/raw``)."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from megatron_ssd.cli.compose import CONFIG_DIR, compose_config
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.config.run import needed
from megatron_ssd.config.training import TrainingConfig
from megatron_ssd.planner.layout import count_layout
from megatron_ssd.planner.memory import GB, worst_rank

RAW = json.loads((CONFIG_DIR.parent / "docs" / "results" / "raw" / "first-h200.json").read_text(encoding="utf-8"))
TOLERANCE = 0.03  # what is left out: root mean squares of norms, indices, a weight's gradient in bf16
NARROW = {"num_hidden_layers": 12, "vocab_size": 32_768, "max_position_embeddings": 131_072}
BF16 = PrecisionConfig(cross_entropy_loss_fusion=False)
FULL = PrecisionConfig(cross_entropy_loss_fusion=False, recompute="full")
LOCAL = PrecisionConfig(transformer_engine=False)


@pytest.mark.parametrize(
    ("part", "case", "shape", "precision", "seq_length"),
    [
        ("speed", "qwen3_1.7b TE bf16", {}, BF16, 8192),
        ("memory", "qwen3_1.7b 64K none", NARROW, BF16, 65_536),
        ("memory", "qwen3_1.7b 64K one sample", NARROW, BF16, 65_536),
        ("memory", "qwen3_1.7b 64K full", NARROW, FULL, 65_536),
        ("specs", "qwen3_1.7b TransformerEngine", {"num_hidden_layers": 8}, BF16, 4096),
        ("specs", "qwen3_1.7b local", {"num_hidden_layers": 8}, LOCAL, 4096),
    ],
)
def test_the_planned_peak_is_the_measured_one(
    part: str, case: str, shape: dict[str, Any], precision: PrecisionConfig, seq_length: int
) -> None:
    measured = next(record for record in RAW[part] if record["case"] == case)
    config = compose_config(["model=qwen3_1.7b", "parallel=single"])
    model = dataclasses.replace(needed(config.model, "model"), **shape)
    training = TrainingConfig(seq_length=seq_length, global_batch_size=4)
    config = dataclasses.replace(config, model=model, precision=precision, training=training)
    memory = worst_rank(config, count_layout(model, config.parallel))
    # torch's allocator does not see what the reserve is for.
    assert (memory.total - memory.reserve) / GB == pytest.approx(measured["peak_gb"], rel=TOLERANCE)
