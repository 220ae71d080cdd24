"""One iteration: forward and backward over the micro batches, one update of the weights.

Whether to update is decided from numbers that are the same on every rank, the loss of the global batch and the norm of
the whole gradient, so that all ranks skip an iteration or none does. A skipped one leaves weights, their mean and the
optimizer's state as they were; its rows are used up, and its learning rate is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_ssd.config.run import RunConfig
from megatron_ssd.config.training import TrainingConfig
from megatron_ssd.models.routers import set_aux_loss_coefficient
from megatron_ssd.training.data import BatchSource
from megatron_ssd.training.loss import forward_step
from megatron_ssd.training.metrics import peak_memory_gib
from megatron_ssd.training.optimizer import clip_and_step, global_grad_norm, normalize_gradients
from megatron_ssd.training.state import TrainingState


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What an iteration gave, the same on every rank."""

    loss: float  # weighted mean over the global batch, before the update; may be no finite number
    grad_norm: float  # L2, before clipping
    learning_rate: float
    valid_tokens: int  # positions that weigh anything in the loss
    skipped: bool
    spike: bool
    peak_memory_gib: float  # the most that any rank has held


def run_step(
    state: TrainingState,
    schedule: OptimizerParamScheduler,
    source: BatchSource,
    run: RunConfig,
    *,
    device: str,
) -> StepResult:
    """Run the iteration after ``state.iteration`` and count it."""
    iteration, config = state.iteration + 1, run.training
    for chunk in state.chunks:
        chunk.zero_grad_buffer()
    state.optimizer.zero_grad()
    normalizer, num_tokens = source.normalizer(iteration), config.global_batch_size * config.seq_length
    normalize_gradients(state.chunks, normalizer)
    set_aux_loss_coefficient(
        state.chunks, run.moe.aux_loss_coeff, run.parallel, normalizer=normalizer, num_tokens=num_tokens
    )
    loss, valid_tokens = run_micro_batches(state, source, config, iteration, forward_only=False, device=device)
    schedule.step(increment=1)
    grad_norm = global_grad_norm(state.optimizer)
    finite, peak = _agree(math.isfinite(loss) and math.isfinite(grad_norm), device)
    spike = False
    if finite:
        clip_and_step(state.optimizer, grad_norm)
        if state.ema is not None:
            state.ema.update()
        spike = state.watch.take(loss, spike_factor=config.spike_factor)
    else:
        state.watch.skip()
    state.iteration = iteration
    return StepResult(
        loss=loss,
        grad_norm=grad_norm,
        learning_rate=float(state.optimizer.param_groups[0]["lr"]),
        valid_tokens=valid_tokens,
        skipped=not finite,
        spike=spike,
        peak_memory_gib=peak,
    )


def run_micro_batches(
    state: TrainingState,
    source: BatchSource,
    config: TrainingConfig,
    iteration: int,
    *,
    forward_only: bool,
    device: str,
) -> tuple[float, int]:
    """(weighted mean loss, positions that weigh anything) of the global batch of ``iteration``, on every rank."""
    seq_length, micro_batch_size = source.schedule_shape
    reports = get_forward_backward_func()(
        forward_step_func=forward_step,
        # One iterator for each model chunk, all over the same micro batches.
        data_iterator=[source.micro_batches(iteration) for _ in state.chunks],
        model=state.chunks,
        num_microbatches=config.num_microbatches(source.data_parallel_size),
        seq_length=seq_length,
        micro_batch_size=micro_batch_size,
        forward_only=forward_only,
    )
    # [2] tensors (weighted loss sum, valid tokens), one a micro batch, on the last pipeline stage only.
    total = torch.stack(reports).sum(0) if reports else torch.zeros(2, dtype=torch.double, device=device)
    dist.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast(total, src=last, group=parallel_state.get_pipeline_model_parallel_group())
    loss_sum, valid_tokens = total.tolist()
    return loss_sum / source.normalizer(iteration), int(valid_tokens)


def _agree(finite: bool, device: str) -> tuple[bool, float]:
    """(whether every rank saw finite numbers, the largest peak memory of any)."""
    numbers = torch.tensor([float(not finite), peak_memory_gib(device)], dtype=torch.double, device=device)
    dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
    bad, peak = numbers.tolist()
    return bad == 0.0, peak
