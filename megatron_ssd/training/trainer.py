"""Runs the training loop on one rank.

    for each iteration:
        run the micro batches forward and backward, divide by the weight of the global batch
        clip and update, unless a number is not finite
        measure, validate and save when due

All ranks run the loop in lockstep. They agree on a request to stop (Ctrl-C, SIGTERM, SIGUSR1), so that all of them end
at the same iteration, after a checkpoint.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch.distributed as dist
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_ssd.artifacts.hub import model_folder
from megatron_ssd.config.cluster import Device
from megatron_ssd.config.model import ModelConfig, MoeConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.config.training import TrainingConfig
from megatron_ssd.errors import UserError
from megatron_ssd.models.build import build_model
from megatron_ssd.models.hf_checkpoint import load_hf_weights
from megatron_ssd.training.checkpoint import choose_checkpoint, load_checkpoint, save_checkpoint
from megatron_ssd.training.checkpoint_writer import CheckpointWriter
from megatron_ssd.training.data import BatchSource, batch_source, open_dataset
from megatron_ssd.training.garbage import collected_together
from megatron_ssd.training.meter import ThroughputMeter
from megatron_ssd.training.metrics import IterationMetrics, MetricsLogger
from megatron_ssd.training.optimizer import build_optimizer, build_schedule, wrap_chunks
from megatron_ssd.training.profiling import profiled
from megatron_ssd.training.shutdown import GracefulShutdown
from megatron_ssd.training.step import EmaWeights, LossSpikeDetector, TrainingState, run_step, validation_loss
from megatron_ssd.training.watchdog import StepWatchdog

_GPU_GC_INTERVAL = 100  # of training.gc_interval on GPUs
_RECENT = 50  # iterations whose pace gives the time left


@dataclass
class Trainer:
    """Trains a model on this rank."""

    model: ModelConfig
    state: TrainingState
    schedule: OptimizerParamScheduler
    source: BatchSource
    validation_source: BatchSource | None  # a single pass over the held-out samples
    writer: CheckpointWriter
    watchdog: StepWatchdog
    meter: ThroughputMeter
    training: TrainingConfig
    moe: MoeConfig
    save_interval: int
    gc_interval: int | None  # None leaves the collector to Python
    profile_folder: Path
    _ended: float = 0.0  # when the last iteration ended
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def train(self, loggers: Sequence[MetricsLogger], shutdown: GracefulShutdown) -> None:
        """Train to iteration ``train_iters``, which is always saved.

        Args:
            loggers: the metrics loggers on rank 0; empty on other ranks.

        Raises:
            KeyboardInterrupt: a stop was requested before the last iteration; the state is saved.
            UserError: too many consecutive iterations without a finite loss and gradient.
        """
        self._ended = time.perf_counter()
        steps = self.training.profile_steps if dist.get_rank() == 0 else None
        with (
            collected_together(self.gc_interval) as collect,
            profiled(steps, self.profile_folder, done=self.state.iteration) as profile,
        ):
            while self.state.iteration < self.training.train_iters:
                self._iterate(loggers, shutdown)
                collect(self.state.iteration)
                profile(self.state.iteration)
        self.writer.finish()

    def _iterate(self, loggers: Sequence[MetricsLogger], shutdown: GracefulShutdown) -> None:
        """One iteration with everything that follows it: validation, metrics, a checkpoint."""
        metrics = self._validated(self.step(shutdown))
        now = time.perf_counter()
        self._recent.append(now - self._ended)
        self._ended = now
        left = self.training.train_iters - self.state.iteration
        seconds_left = round(left * sum(self._recent) / len(self._recent), 1)
        metrics = dataclasses.replace(metrics, seconds_left=seconds_left)
        for logger in loggers:
            logger.log(metrics)
        self.writer.poll()
        try:
            self.state.spikes.check(self.state.iteration)
        except UserError:
            self.writer.finish()  # a save in progress is older than the bad iterations, and the user will need it
            raise
        stopping = shutdown.requested()
        if stopping or self._is_due(self.save_interval):
            for logger in loggers:
                logger.flush()
            save_checkpoint(self.writer, self.state)
        if stopping and self.state.iteration < self.training.train_iters:
            self.writer.finish()
            raise stopping

    def step(self, shutdown: GracefulShutdown | None = None) -> IterationMetrics:
        """One iteration: forward, backward, update, measurements. ``shutdown`` learns what all ranks were asked for."""
        self.meter.start()
        with self.watchdog.watch(self.state.iteration + 1):
            result = run_step(self.state, self.schedule, self.source, moe=self.moe, shutdown=shutdown,
                              before_update=self.writer.detach)  # fmt: skip
        return self.meter.stop(self.state.iteration, result)

    def _is_due(self, interval: int) -> bool:
        """Whether this iteration ends an interval, or the run."""
        return self.state.iteration % interval == 0 or self.state.iteration == self.training.train_iters

    def _validated(self, metrics: IterationMetrics) -> IterationMetrics:
        if self.validation_source is None or not self._is_due(self.training.validation_interval):
            return metrics
        return dataclasses.replace(metrics, validation_loss=validation_loss(self.state, self.validation_source))


def build_trainer(config: RunConfig, work: Path, device: Device) -> Trainer:
    """A trainer that starts from the newest checkpoint in ``work``, else from the base model, else from the seed.

    Raises:
        UserError: the data set does not fit the model, or the checkpoint or base model cannot be loaded.
    """
    model = needed(config.model, "model")
    training, parallel = config.training, config.parallel
    dataset = open_dataset(config, model)
    checkpoint = choose_checkpoint(work, config.checkpoint.on_broken)
    is_random = checkpoint is None and not config.trains_from_base
    chunks = build_model(
        model, parallel, config.precision, moe=config.moe, device=device, seed=config.seed if is_random else None
    )
    if checkpoint is None and config.trains_from_base:
        load_hf_weights(chunks, model, parallel, model_folder(model.path, model.revision))
    wrapped = wrap_chunks(chunks, config.optimizer, parallel, device=device)
    state = TrainingState(
        chunks=wrapped,
        optimizer=build_optimizer(wrapped, config.optimizer, parallel),
        spikes=LossSpikeDetector(spike_factor=training.spike_factor, max_skipped=training.max_skipped),
        ema=None if training.ema_decay is None else EmaWeights(chunks, training.ema_decay),
    )
    if checkpoint is not None:
        load_checkpoint(*checkpoint, state)
    source = batch_source(dataset, config, model, device=device)
    held_out = None
    if training.validation_fraction > 0:
        validation = open_dataset(config, model, split="validation")
        held_out = batch_source(validation, config, model, device=device, single_pass=True)
    return Trainer(
        model=model,
        state=state,
        schedule=build_schedule(
            state.optimizer, config.optimizer, train_iters=training.train_iters, done=state.iteration
        ),
        source=source,
        validation_source=held_out,
        writer=CheckpointWriter(work, config.checkpoint),
        watchdog=StepWatchdog(factor=training.hang_factor, least_seconds=training.hang_seconds),
        meter=ThroughputMeter(model, config.precision, state.chunks, source),
        training=training,
        moe=config.moe,
        save_interval=config.checkpoint.save_interval,
        gc_interval=training.gc_interval or (_GPU_GC_INTERVAL if device == "cuda" else None),
        profile_folder=Path(config.run_dir) / "profile",
    )
