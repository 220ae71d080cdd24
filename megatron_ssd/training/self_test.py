"""Before a launch: the loss of samples in packed rows equals the loss of the same samples alone, in this layout.

One micro batch of packed rows goes forward through the model as it is laid out, then a few of its samples, each alone
at the beginning of a micro batch that is padding otherwise. A sample there sees nothing but itself whatever attention
does, so a neighbour that leaks in, rotary positions that do not start anew, or a split over ranks that mixes positions
up make the two differ. Nothing is changed by it: no gradient, no random number, no state.

What it does not see: an error that is the same in both, in the first sample of a row.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.dataset.packed_dataset import PackedSequence
from megatron_ssd.errors import UserError
from megatron_ssd.training.data import Batch, BatchSource
from megatron_ssd.training.state import TrainingState

log = logging.getLogger(__name__)

_MAX_SAMPLES = 4  # each costs a forward pass of one micro batch


@dataclass(frozen=True)
class _Sample:
    """A sample of the packed rows: its document, the row it is in, and its row alone."""

    document: int
    row: int
    place: int
    alone: PackedSequence


@torch.no_grad()
def check_packing(run: RunConfig, state: TrainingState, source: BatchSource, *, device: str) -> None:
    """Compare a few samples of the first rows, packed and alone. Every rank must call this.

    Raises:
        UserError: on every rank, where a sample's mean loss differs by more than rounding explains.
    """
    rows, samples = _first_rows(source)
    micro_batches = [_numbered(rows, samples)]
    empty = [source.dataset.empty_sequence()] * (len(rows) - 1)
    for number, sample in enumerate(samples, start=1):
        micro_batches.append([_mark(sample.alone, sample.alone["loss_weights"] > 0, number), *empty])
    sums = _forward(state, source, micro_batches, num_samples=len(samples), device=device)
    positions = [int((sample.alone["loss_weights"] > 0).sum()) for sample in samples]
    worst = (-1.0, "", 0.0, 0.0, 0.0)
    for number, (sample, count) in enumerate(zip(samples, positions, strict=True)):
        packed, alone = float(sums[0, number]) / count, float(sums[number + 1, number]) / count
        allowed = tolerance(run.precision, alone, count)
        excess = abs(packed - alone) / allowed
        worst = max(
            worst, (excess if math.isfinite(excess) else math.inf, str(sample.document), packed, alone, allowed)
        )
    _raise_worst(worst)
    if dist.get_rank() == 0:
        log.info(
            "self-test: %d samples have the same loss packed and alone: at most %.1e apart, where rounding allows %.1e",
            len(samples),
            abs(worst[2] - worst[3]),
            worst[4],
        )


def tolerance(precision: PrecisionConfig, loss: float, num_positions: int) -> float:
    """By how much a sample's mean loss may differ: rounding of single positions averages out over many."""
    if precision.params_dtype == "fp32" and not precision.fast_matmul:
        return 2e-5 * max(1.0, loss)
    per_position, floor = (0.4, 0.03) if precision.fp8 else (0.1, 0.01)
    return per_position / math.sqrt(num_positions) + floor


def _first_rows(source: BatchSource) -> tuple[list[PackedSequence], list[_Sample]]:
    """The rows of the first micro batch, and of their samples the last and the second of rows at both ends."""
    dataset, count = source.dataset, source.training.micro_batch_size
    places = [dataset.locate(number) for number in range(count)]
    chosen: dict[tuple[int, int], None] = {}  # ordered
    for row in (0, count - 1):
        last = len(dataset.samples_in_sequence(*places[row])) - 1
        for place in (last, min(1, last)):
            chosen[row, place] = None
    samples = [
        _Sample(
            document=int(dataset.samples_in_sequence(*places[row])[place]),
            row=row,
            place=place,
            alone=dataset.single_sample_sequence(*places[row], place),
        )
        for row, place in list(chosen)[:_MAX_SAMPLES]
    ]
    return [dataset.sequence(*place) for place in places], samples


def _numbered(rows: list[PackedSequence], samples: list[_Sample]) -> list[PackedSequence]:
    """The packed rows, with the number of the sample in place of a weight where one of ``samples`` is scored."""
    marked = [row | {"loss_weights": np.zeros_like(row["loss_weights"])} for row in rows]
    for number, sample in enumerate(samples, start=1):
        row = rows[sample.row]
        where = (row["segment_ids"] == sample.place + 1) & (row["loss_weights"] > 0)
        marked[sample.row]["loss_weights"][where] = number
    return marked


def _mark(row: PackedSequence, where: np.ndarray, number: int) -> PackedSequence:
    return row | {"loss_weights": np.where(where, np.float32(number), np.float32(0))}


def _forward(
    state: TrainingState,
    source: BatchSource,
    micro_batches: list[list[PackedSequence]],
    *,
    num_samples: int,
    device: str,
) -> Tensor:
    """[micro batches, samples]: sums of the loss, the same on the ranks of a replica."""
    # Interleaved pipelines take multiples of their length.
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    padded = micro_batches + micro_batches[-1:] * (-len(micro_batches) % stages)
    for chunk in state.chunks:
        chunk.eval()
    seq_length, micro_batch_size = source.schedule_shape
    reports = get_forward_backward_func()(
        forward_step_func=functools.partial(_sample_sums, num_samples=num_samples),
        data_iterator=[(source.batch(rows) for rows in padded) for _ in state.chunks],
        model=state.chunks,
        num_microbatches=len(padded),
        seq_length=seq_length,
        micro_batch_size=micro_batch_size,
        forward_only=True,
    )
    for chunk in state.chunks:
        chunk.train()
    sums = torch.stack(reports) if reports else torch.zeros(len(padded), num_samples, dtype=torch.double, device=device)
    dist.all_reduce(sums, group=parallel_state.get_context_parallel_group())
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast(sums, src=last, group=parallel_state.get_pipeline_model_parallel_group())
    return sums[: len(micro_batches)].cpu()


def _sample_sums(
    batches: Iterator[Batch], model: torch.nn.Module, *, num_samples: int
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]]:
    """A forward step for Megatron-Core's schedules whose report is [samples], sums of the loss."""
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


def _raise_worst(worst: tuple[float, str, float, float, float]) -> None:
    """Agree on the worst sample of all replicas, and raise on every rank where it is beyond tolerance."""
    everywhere: list[tuple[float, str, float, float, float]] = [worst] * dist.get_world_size()
    dist.all_gather_object(everywhere, worst)
    excess, document, packed, alone, allowed = max(everywhere)
    if excess > 1:
        raise UserError(
            f"training.self_test: sample {document} has loss {packed:.6g} in a packed row and {alone:.6g} alone",
            rule=f"they may differ by {allowed:.1e}, which rounding explains; packed samples see each other or their "
            "positions are wrong in this layout",
            fix="set training.packing=none or another parallel layout, and report this; training.self_test=false "
            "trains all the same",
        )
