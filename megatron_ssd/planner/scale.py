"""Predicts a layout on more GPUs, which hold further replicas of it.

Assumptions: every GPU is as fast as in the measured rate, which was taken on 8 or 16 GPUs, so the hours are those of
perfect scaling; a replica gets at least one sample per iteration, so the batch grows where there are more replicas than
samples; experts stay split over as many GPUs as in the layout.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from megatron_ssd.config.run import RunConfig
from megatron_ssd.planner.duration import Duration, duration
from megatron_ssd.planner.gpus import Gpu
from megatron_ssd.planner.layout import LayoutReport
from megatron_ssd.planner.memory import RankMemory, replicas, worst_rank

_EXCHANGED = 4 + 2  # bytes per parameter: its gradient in fp32 to the rank that updates it, and its new weight in bf16


@dataclass(frozen=True)
class Scaled:
    """A configuration on more GPUs."""

    config: RunConfig
    memory: RankMemory
    exchanged: float  # bytes that each GPU sends to the other replicas per iteration
    hours: Duration | None


def scaled(config: RunConfig, layout: LayoutReport, gpu: Gpu, *, num_gpus: int) -> Scaled:
    """``config``, whose ranks hold what ``layout`` says, on ``num_gpus`` GPUs and over as many samples as before."""
    parallel = dataclasses.replace(config.parallel, world_size=num_gpus)
    training, replicas = config.training, parallel.data_parallel_size
    num_samples = training.train_iters * training.global_batch_size
    batch = max(training.global_batch_size, replicas)
    training = dataclasses.replace(training, global_batch_size=batch, train_iters=max(num_samples // batch, 1))
    optimizer = dataclasses.replace(config.optimizer, lr_warmup_iters=0)  # fewer iterations may be fewer than those
    config = dataclasses.replace(config, parallel=parallel, training=training, optimizer=optimizer)
    return Scaled(
        config=config,
        memory=worst_rank(config, layout),
        exchanged=_EXCHANGED * _shared_parameters(config, layout),
        hours=duration(config, None, gpu),
    )


def _shared_parameters(config: RunConfig, layout: LayoutReport) -> float:
    """Parameters whose gradients a rank exchanges with those that hold the same: n - 1 of n parts leave the rank."""
    rank = layout.ranks[0]
    dense_ranks, expert_ranks = replicas(config.parallel)
    experts = rank.num_expert_parameters
    return (rank.num_parameters - experts) * (1 - 1 / dense_ranks) + experts * (1 - 1 / expert_ranks)
