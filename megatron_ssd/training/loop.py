"""The training loop.

    for each iteration:
        run the micro batches forward and backward, summing weighted loss and gradients
        divide by the weight of the global batch, clip, step at the iteration's learning rate
        measure, and save where it is time

Every rank runs it in step. A request to stop (Ctrl-C, SIGTERM) is agreed on between ranks, so that all of them end at
the same iteration, after a checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_ssd.config.training import CheckpointConfig, TrainingConfig
from megatron_ssd.errors import UserError
from megatron_ssd.training.checkpoint import save_checkpoint
from megatron_ssd.training.data import Batch, BatchSource
from megatron_ssd.training.loss import forward_step
from megatron_ssd.training.metrics import IterationMetrics, peak_memory_gib
from megatron_ssd.training.optimizer import normalize_gradients
from megatron_ssd.training.stop import StopRequest


class Observer(Protocol):
    """What rank 0 shows and writes; the other ranks have one that does nothing."""

    def after_iteration(self, metrics: IterationMetrics) -> None:
        """Take the measures of an iteration."""

    def before_checkpoint(self) -> None:
        """Make everything durable that a checkpoint relies on."""


@dataclass
class Trainer:
    """A model under training on this rank. ``iteration`` counts finished iterations."""

    chunks: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    schedule: OptimizerParamScheduler
    source: BatchSource
    config: TrainingConfig
    checkpoint: CheckpointConfig
    folder: Path  # of the checkpoints
    iteration: int

    def train(self, observer: Observer, stop: StopRequest) -> None:
        """Run to ``train_iters``; the last iteration is always saved.

        Raises:
            KeyboardInterrupt: a stop was asked for; the state is saved.
            UserError: the loss is no longer a number.
        """
        saved = self.iteration
        while self.iteration < self.config.train_iters:
            metrics = self.step()
            observer.after_iteration(metrics)
            stopping = stop.agreed()
            due = self.iteration % self.checkpoint.save_interval == 0 or self.iteration == self.config.train_iters
            if stopping or due:
                observer.before_checkpoint()
                save_checkpoint(self.folder, self.iteration, self.chunks, self.optimizer)
                saved = self.iteration
            if stopping:
                raise KeyboardInterrupt
        assert saved == self.config.train_iters

    def step(self) -> IterationMetrics:
        """One iteration: forward, backward, update."""
        started = time.perf_counter()
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        normalizer = self.source.normalizer(self.iteration + 1)
        seq_length, micro_batch_size = self.source.schedule_shape
        normalize_gradients(self.chunks, normalizer)
        reports = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=self._data_iterators(),
            model=self.chunks,
            num_microbatches=self.config.num_microbatches(self.source.data_parallel_size),
            seq_length=seq_length,
            micro_batch_size=micro_batch_size,
            forward_only=False,
        )
        loss, valid_tokens = _global_loss(reports, normalizer)
        self.iteration += 1
        self.schedule.step(increment=1)
        _, grad_norm, _ = self.optimizer.step()
        self._check(loss, grad_norm)
        seconds = time.perf_counter() - started
        tokens = self.config.global_batch_size * self.config.seq_length
        return IterationMetrics(
            iteration=self.iteration,
            loss=loss,
            grad_norm=float(grad_norm),
            learning_rate=float(self.optimizer.param_groups[0]["lr"]),
            valid_tokens=valid_tokens,
            tokens=tokens,
            tokens_per_second=round(tokens / seconds, 1),
            seconds=round(seconds, 4),
            peak_memory_gib=round(peak_memory_gib(), 3),
        )

    def _data_iterators(self) -> list[Iterator[Batch]]:
        """One iterator for each model chunk, all over the same micro batches."""
        return [self.source.micro_batches(self.iteration + 1) for _ in self.chunks]

    def _check(self, loss: float, grad_norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise UserError(
                f"iteration {self.iteration}: loss {loss}, gradient norm {grad_norm}",
                rule="both must be finite numbers",
                fix="lower optimizer.lr or raise optimizer.lr_warmup_iters; the last checkpoint is from before this",
            )


def _global_loss(reports: list[torch.Tensor], normalizer: float) -> tuple[float, int]:
    """(weighted mean loss over the global batch, number of valid tokens), the same on every rank.

    ``reports`` are [2] tensors (weighted loss sum, valid tokens), one a micro batch, on the last pipeline stage only.
    """
    total = torch.stack(reports).sum(0) if reports else torch.zeros(2, dtype=torch.double, device=_device())
    dist.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast(total, src=last, group=parallel_state.get_pipeline_model_parallel_group())
    loss_sum, valid_tokens = total.tolist()
    return loss_sum / normalizer, int(valid_tokens)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
