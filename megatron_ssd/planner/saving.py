"""Predicts the memory and the time of saving a checkpoint, from bytes counted.

What a rank writes from a GPU is copied to host memory first. Per trained parameter it writes the optimizer's fp32 copy
and two moments (12 bytes; Megatron-Core widens narrower moments, and ``precision_aware`` has 2 bytes in place of the
copy of bf16 weights); per parameter its weight and, with ``training.ema_decay``, the EMA. Ranks that hold the same
tensors share the writing.

With ``dp_reshardable`` that is all. With ``fully_reshardable`` rank 0 of each data-parallel group gathers the state of
the group in fp32, and its writer copies every parameter's part once more: 24 bytes per trained parameter of the rank.

The seconds are bytes over rates: all ranks together write to one disk, and each rank hashes what it writes at the same
time. Gathering is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.config.training import OptimizerFormat
from megatron_ssd.planner.layout import LayoutReport, RankReport
from megatron_ssd.planner.memory import GB, replicas

DISK_RATE = 1.3  # GB/s of all ranks together: the disk of the machine of docs/results/gpu.md
HASH_RATE = 2 * 1.49  # GB/s of a rank: two threads (docs/guides/training.md)
_GATHERED = 3 * 4  # bytes per parameter, whatever the types of the state


@dataclass(frozen=True, kw_only=True)
class SaveCost:
    """Cost of one save.

    Attributes:
        host_bytes: host memory of the rank that needs the most, while the save lasts.
        written_bytes: of all ranks together.
        hashed_bytes: of the rank that writes the most.
    """

    host_bytes: float
    written_bytes: float
    hashed_bytes: float

    def seconds(self, disk_rate: float) -> float:
        """Writing at ``disk_rate`` GB/s, or hashing if that takes longer."""
        return max(self.written_bytes / disk_rate, self.hashed_bytes / HASH_RATE) / GB


def save_cost(config: RunConfig, layout: LayoutReport, optimizer_format: OptimizerFormat) -> SaveCost:
    """The cost of a save of every rank of ``layout``, which was built from this configuration."""
    parallel = config.parallel
    gathers = optimizer_format == "fully_reshardable" and parallel.use_distributed_optimizer
    per_weight = (4 if config.precision.params_dtype == "fp32" else 2) + (config.training.ema_decay is not None) * 4
    per_state = _state_bytes(config)
    written = [_share(rank, parallel, per_weight, 0 if gathers else per_state) for rank in layout.ranks]
    host = list(written)
    if gathers:
        for number, rank in enumerate(layout.ranks):
            dense, experts = _trained(rank)
            first, first_of_experts = _is_first(rank, parallel)
            gathered = dense * first + experts * first_of_experts
            host[number] += 2 * _GATHERED * gathered
            written[number] += _GATHERED * gathered
    return SaveCost(host_bytes=max(host), written_bytes=sum(written), hashed_bytes=max(written))


def save_text(config: RunConfig, layout: LayoutReport, disk_rate: float) -> str:
    """Host memory and seconds of a save, one line per format."""
    head = f"a checkpoint, if all ranks write {disk_rate:g} GB/s"
    lines = [f"{head:46s} {'GB':>8s} {'host GB of a rank':>19s} {'seconds':>9s}"]
    for optimizer_format in get_args(OptimizerFormat):
        cost = save_cost(config, layout, optimizer_format)
        lines.append(
            f"  {optimizer_format:44s} {cost.written_bytes / GB:8.1f} {cost.host_bytes / GB:19.1f} "
            f"{cost.seconds(disk_rate):9.0f}"
        )
    return "\n".join(lines)


def _state_bytes(config: RunConfig) -> int:
    """Bytes that are written per trained parameter."""
    is_fp32 = config.precision.params_dtype == "fp32"
    if is_fp32 and not config.parallel.use_distributed_optimizer:
        return 4 + 4  # the weights are the only copy
    remainder_only = config.optimizer.precision_aware and config.optimizer.main_params_dtype == "fp32" and not is_fp32
    return (2 if remainder_only else 4) + 4 + 4


def _trained(rank: RankReport) -> tuple[float, float]:
    """Trained parameters of the rank outside of experts, and in experts."""
    experts = rank.num_expert_parameters
    return rank.num_parameters - rank.num_frozen_parameters - experts, experts


def _share(rank: RankReport, parallel: ParallelConfig, per_weight: float, per_state: float) -> float:
    """Bytes that the rank writes of what it shares evenly with its replicas."""
    dense_replicas, expert_replicas = replicas(parallel)
    dense, experts = _trained(rank)
    return (
        (dense * (per_weight + per_state) + rank.num_frozen_parameters * per_weight) / dense_replicas
        + experts * (per_weight + per_state) / expert_replicas
    )  # fmt: skip


def _is_first(rank: RankReport, parallel: ParallelConfig) -> tuple[bool, bool]:
    """Whether the rank is the first of those that hold the same dense weights, and of those with the same experts."""
    first = rank.data_rank == 0 and rank.context_rank == 0
    # Ranks of a stage are ordered by expert-data rank, then expert rank, then expert-tensor rank.
    per_stage = parallel.world_size // parallel.pipeline_model_parallel_size
    holders = parallel.expert_model_parallel_size * parallel.expert_tensor_parallel_size
    return first, rank.rank % per_stage < holders
