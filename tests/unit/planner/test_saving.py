"""Tests that the planner counts the bytes of a checkpoint that training writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from megatron.core import dist_checkpointing

from launch.train import train as run_train
from megatron_ssd.cli.compose import compose_config
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.planner.layout import LayoutReport, RankReport, count_layout
from megatron_ssd.planner.saving import save_cost
from tests.helpers.devices import without_gpu
from tests.helpers.training_run import DENSE, training_config, write_dataset

BF16 = PrecisionConfig(params_dtype="bf16", transformer_engine=False)
NON_DISTRIBUTED = ParallelConfig(use_distributed_optimizer=False)


@without_gpu
@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint": {"optimizer_format": "dp_reshardable"}},
        {"precision": BF16, "checkpoint": {"optimizer_format": "fully_reshardable"}, "training": {"ema_decay": 0.5}},
        {"parallel": NON_DISTRIBUTED},
    ],
)
def test_the_counted_bytes_are_those_of_the_saved_tensors(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_dataset(tmp_path)
    changes["training"] = {"train_iters": 3, **changes.get("training", {})}
    config = training_config(tmp_path, **changes)
    run_train(config)
    saved = dist_checkpointing.load_tensors_metadata(str(tmp_path / "checkpoints" / "iter_0000003"))
    found = sum(tensor.dtype.itemsize * _size(tensor.global_shape) for tensor in saved.values())
    cost = save_cost(config, count_layout(DENSE, config.parallel), config.checkpoint.optimizer_format)
    assert cost.written_bytes == pytest.approx(found, rel=0.005)  # padding between parameters
    assert cost.hashed_bytes == cost.written_bytes


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def test_only_gathering_needs_more_host_memory_than_what_is_written() -> None:
    config = compose_config(["model=qwen3_30b", "parallel=cp8_ep8"])
    ranks = [
        RankReport(rank=number, tensor_rank=0, pipeline_rank=0, context_rank=number, expert_rank=number, data_rank=0,
                   num_parameters=5_000, num_expert_parameters=3_600)
        for number in range(8)
    ]  # fmt: skip
    layout = LayoutReport(ranks=tuple(ranks), num_parameters=8 * 3_600 + 1_400)
    shards, gathered = (save_cost(config, layout, name) for name in ("dp_reshardable", "fully_reshardable"))
    assert shards.written_bytes == gathered.written_bytes == layout.num_parameters * 14
    assert shards.host_bytes == shards.written_bytes / 8
    assert gathered.host_bytes == 5_000 * 24 + 3_600 * 2 + 1_400 * 2 / 8
    assert gathered.seconds(1.0) == shards.seconds(1.0) == pytest.approx(shards.written_bytes / 1e9)
    assert gathered.seconds(1000.0) > shards.seconds(1000.0)  # one rank hashes most of it
