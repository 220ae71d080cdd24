"""Tests which sequence lengths and batch sizes a parallel layout accepts."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.config.training import TrainingConfig
from megatron_ssd.errors import ConfigError

CP2 = {"world_size": 2, "context_parallel_size": 2}
VPP2 = {"world_size": 2, "pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}


def config(parallel: dict[str, Any], **training: Any) -> RunConfig:
    return RunConfig(parallel=ParallelConfig(**parallel), training=TrainingConfig(**training))


@pytest.mark.parametrize(
    ("parallel", "parts"),
    [
        ({}, 1),
        (CP2, 4),
        ({"world_size": 8, "context_parallel_size": 8}, 16),
        ({"world_size": 2, "tensor_model_parallel_size": 2}, 1),
        ({"world_size": 2, "tensor_model_parallel_size": 2, "sequence_parallel": True}, 2),
        # Each of two context-parallel ranks divides its part by four again.
        ({"world_size": 8, "tensor_model_parallel_size": 4, "context_parallel_size": 2, "sequence_parallel": True}, 8),
        ({"world_size": 6, "tensor_model_parallel_size": 3, "context_parallel_size": 2, "sequence_parallel": True}, 12),
    ],
)
def test_sequences_are_divided_into_equal_parts(parallel: dict[str, Any], parts: int) -> None:
    assert ParallelConfig(**parallel).sequence_parts == parts
    config(parallel, seq_length=8 * parts, global_batch_size=8)
    if parts > 1:
        with pytest.raises(ConfigError, match=rf"seq_length = {8 * parts + 1}: must be a multiple of {parts}:"):
            config(parallel, seq_length=8 * parts + 1, global_batch_size=8)


def test_packed_samples_are_divided_by_context_parallelism() -> None:
    assert config({}, packing="best_fit").segment_multiple == 1
    assert config(CP2, packing="best_fit").segment_multiple == 4
    assert config(CP2, packing="none").segment_multiple == 1
    assert config(CP2, packing="best_fit", segment_multiple=16).segment_multiple == 16
    assert config({}, packing="best_fit", segment_multiple=16).segment_multiple == 16
    with pytest.raises(ConfigError, match=r"segment_multiple = 6: must be a multiple of 4"):
        config(CP2, packing="best_fit", seq_length=96, segment_multiple=6)
    with pytest.raises(ConfigError, match=r"segment_multiple = 5: must be positive and divide training.seq_length"):
        config({}, packing="best_fit", segment_multiple=5)


def test_interleaved_stages_need_full_rounds_of_micro_batches() -> None:
    config(VPP2, global_batch_size=8, micro_batch_size=2, packing="none")
    with pytest.raises(ConfigError, match="in multiples of 2, and a replica has 3"):
        config(VPP2, global_batch_size=6, micro_batch_size=2, packing="none")
    config(VPP2, global_batch_size=6)  # packed samples are rounded up to full rounds
