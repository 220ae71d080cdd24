"""Packing self-test: a sample must have the same loss in a packed sequence as alone.

One micro batch of packed sequences runs forward through the model, then a few of its samples, each alone at the start
of a micro batch that is padding otherwise. Alone, a sample cannot attend to another one. So attention across samples,
rotary positions that do not restart, or a context-parallel split that mixes up positions make the two losses differ.
The test changes nothing: no gradient, no random number, no state.

It cannot detect an error that changes the loss of a sample by the same amount in both cases.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.dataset.packed_dataset import PackedDataset, PackedSequence
from megatron_ssd.errors import UserError
from megatron_ssd.training.data import Batch, BatchSource, MicroBatchPlan
from megatron_ssd.training.step import TrainingState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Sample:
    """A sample: its document, its packed sequence in the micro batch, its slot there, and the sample alone."""

    document: int
    sequence: int
    slot: int
    alone: PackedSequence


class _Difference(NamedTuple):
    """Mean losses of a sample, ordered by ``excess``: their difference divided by the allowed one."""

    excess: float
    document: int
    packed: float
    alone: float
    allowed: float


@torch.no_grad()
def check_packing(state: TrainingState, source: BatchSource, precision: PrecisionConfig) -> None:
    """Compare a few samples of the first sequences, packed and alone. Every rank must call this.

    Raises:
        UserError: on every rank, if a sample's mean loss differs by more than rounding explains.
    """
    # All replicas test the same micro batch: they exchange tokens of experts, so they need as many forward passes.
    plan = source.plan(1)[0][0]
    sequences = [source.dataset.joined(parts, plan.length) for parts in plan.sequences]
    samples = _chosen_samples(source.dataset, plan)
    micro_batches = [_numbered(sequences, samples)]
    empty = [source.dataset.joined([], plan.length)] * (len(sequences) - 1)
    counted = [sample.alone["loss_weights"] > 0 for sample in samples]
    for number, (sample, where) in enumerate(zip(samples, counted, strict=True), start=1):
        micro_batches.append([sample.alone | {"loss_weights": number * where.astype(np.float32)}, *empty])
    shape = source.schedule_shape(plan)
    sums = sample_losses(state, source, micro_batches, shape=shape, num_samples=len(samples))
    differences = []
    for number, (sample, where) in enumerate(zip(samples, counted, strict=True)):
        count = int(where.sum())
        packed, alone = float(sums[0, number]) / count, float(sums[number + 1, number]) / count
        allowed = tolerance(precision, alone, count)
        excess = abs(packed - alone) / allowed
        excess = excess if math.isfinite(excess) else math.inf
        differences.append(_Difference(excess, sample.document, packed, alone, allowed))
    worst = max(differences)
    _raise_worst(worst)
    if dist.get_rank() == 0:
        log.info(
            "self-test: %d samples have the same loss packed and alone: they differ by at most %.1e (allowed: %.1e)",
            len(samples),
            abs(worst.packed - worst.alone),
            worst.allowed,
        )


def tolerance(precision: PrecisionConfig, loss: float, num_tokens: int) -> float:
    """How much a sample's mean loss may differ: rounding of single tokens averages out over many."""
    if precision.params_dtype == "fp32" and not precision.fast_matmul:
        return 2e-5 * max(1.0, loss)
    per_token, floor = (0.4, 0.03) if precision.fp8 else (0.1, 0.01)
    return per_token / math.sqrt(num_tokens) + floor


def _chosen_samples(dataset: PackedDataset, plan: MicroBatchPlan) -> list[_Sample]:
    """The last and the second sample of the first and of the last sequence of a micro batch."""
    # A dictionary, in order and without repeats.
    chosen: dict[tuple[int, int], _Sample] = {}
    for sequence in (0, len(plan.sequences) - 1):
        samples = [
            (*at, slot)
            for at in plan.sequences[sequence]
            for slot in range(len(dataset.samples_in_sequence(*at)))
        ]  # fmt: skip
        for number in (len(samples) - 1, min(1, len(samples) - 1)):
            epoch, index, slot = samples[number]
            chosen[sequence, number] = _Sample(
                document=int(dataset.samples_in_sequence(epoch, index)[slot]),
                sequence=sequence,
                slot=number,
                alone=dataset.single_sample_sequence(epoch, index, slot, plan.length),
            )
    return list(chosen.values())


def _numbered(sequences: list[PackedSequence], samples: list[_Sample]) -> list[PackedSequence]:
    """The packed sequences with sample numbers as loss weights: 1, 2, ... for ``samples``, 0 for all other tokens."""
    marked = [each | {"loss_weights": np.zeros_like(each["loss_weights"])} for each in sequences]
    for number, sample in enumerate(samples, start=1):
        packed = sequences[sample.sequence]
        where = (packed["segment_ids"] == sample.slot + 1) & (packed["loss_weights"] > 0)
        marked[sample.sequence]["loss_weights"][where] = number
    return marked


def sample_losses(
    state: TrainingState,
    source: BatchSource,
    micro_batches: list[list[PackedSequence]],
    *,
    shape: tuple[int, int],
    num_samples: int,
) -> Tensor:
    """[micro batches, samples]: sums of the loss, the same on the ranks of a replica.

    Args:
        micro_batches: packed sequences whose ``loss_weights`` are sample numbers from 1; 0 elsewhere.
        shape: ``BatchSource.schedule_shape`` of each.
    """
    # Interleaved pipelines need a multiple of their length.
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    padded = micro_batches + micro_batches[-1:] * (-len(micro_batches) % stages)
    for chunk in state.chunks:
        chunk.eval()
    seq_length, micro_batch_size = shape
    reports = get_forward_backward_func()(
        forward_step_func=functools.partial(_sample_sums, num_samples=num_samples),
        data_iterator=[(source.batch(sequences) for sequences in padded) for _ in state.chunks],
        model=state.chunks,
        num_microbatches=len(padded),
        seq_length=seq_length,
        micro_batch_size=micro_batch_size,
        forward_only=True,
    )
    for chunk in state.chunks:
        chunk.train()
    empty = torch.zeros(len(padded), num_samples, dtype=torch.double, device=source.device)
    sums = torch.stack(reports) if reports else empty
    dist.all_reduce(sums, group=parallel_state.get_context_parallel_group())
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast(sums, src=last, group=parallel_state.get_pipeline_model_parallel_group())
    return sums[: len(micro_batches)].cpu()


def _sample_sums(
    batches: Iterator[Batch], model: torch.nn.Module, *, num_samples: int
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]]:
    """A forward step for Megatron-Core's schedules that reports the sum of the loss per sample, [samples]."""
    batch = next(batches)
    losses = model(
        batch.tokens, batch.position_ids, None, labels=batch.labels, packed_seq_params=batch.packed_seq_params
    )

    def sums(losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        numbers = batch.loss_weights.flatten().long()
        report = torch.zeros(num_samples + 1, dtype=torch.double, device=losses.device)
        report.index_add_(0, numbers, losses.flatten().double())
        return losses.sum(), torch.tensor(1, dtype=torch.int, device=losses.device), report[1:]

    return losses, sums


def _raise_worst(worst: _Difference) -> None:
    """Raise ``UserError`` on every rank if the worst sample of any rank differs by more than is allowed."""
    everywhere = [worst] * dist.get_world_size()
    dist.all_gather_object(everywhere, worst)
    worst = max(everywhere)
    if worst.excess > 1:
        raise UserError(
            f"training.self_test: sample {worst.document} has loss {worst.packed:.6g} in a packed sequence and "
            f"{worst.alone:.6g} alone",
            rule=f"rounding explains a difference of {worst.allowed:.1e} only; packed samples attend to each other, or "
            "their positions are wrong in this layout",
            fix="set training.packing=none or another parallel layout, and report this; training.self_test=false "
            "skips this test",
        )
