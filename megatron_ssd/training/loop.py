"""The training loop.

    for each iteration:
        run the micro batches forward and backward, divide by the weight of the global batch
        clip and update, unless a number is not finite
        measure, validate and save where it is time

Every rank runs it in step. A request to stop (Ctrl-C, SIGTERM, SIGUSR1) is agreed on between ranks, so that all of them
end at the same iteration, after a checkpoint.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from dataclasses import dataclass, field

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_ssd.config.run import RunConfig
from megatron_ssd.config.training import TrainingConfig
from megatron_ssd.training.checkpoint import save_checkpoint
from megatron_ssd.training.checkpoint_writer import CheckpointWriter
from megatron_ssd.training.data import BatchSource
from megatron_ssd.training.meter import Meter
from megatron_ssd.training.metrics import IterationMetrics
from megatron_ssd.training.observer import Observer
from megatron_ssd.training.state import TrainingState
from megatron_ssd.training.step import run_step
from megatron_ssd.training.stop import StopRequest
from megatron_ssd.training.validation import Validation

_RECENT = 50  # iterations that the time left is reckoned from


@dataclass
class Trainer:
    """A model under training on this rank, its data and what is asked for."""

    state: TrainingState
    schedule: OptimizerParamScheduler
    source: BatchSource
    validation: Validation | None  # where rows are held out
    writer: CheckpointWriter
    meter: Meter
    run: RunConfig
    device: str
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))

    @property
    def chunks(self) -> list[DistributedDataParallel]:
        """The model's chunks on this rank."""
        return self.state.chunks

    @property
    def config(self) -> TrainingConfig:
        """The loop's own section of ``run``."""
        return self.run.training

    @property
    def iteration(self) -> int:
        """Finished iterations."""
        return self.state.iteration

    def train(self, observer: Observer, stop: StopRequest) -> None:
        """Run to ``train_iters``; the last iteration is always saved.

        Raises:
            KeyboardInterrupt: a stop was asked for before the last iteration; the state is saved.
            UserError: too many iterations in a row without a finite loss and gradient.
        """
        started = time.perf_counter()
        while self.state.iteration < self.config.train_iters:
            metrics = self._validated(self.step())
            now = time.perf_counter()
            self._recent.append(now - started)
            started = now
            observer.after_iteration(dataclasses.replace(metrics, seconds_left=self._seconds_left()))
            self.writer.poll()
            self._check_watch()
            stopping = stop.agreed()
            if stopping or self._due(self.run.checkpoint.save_interval):
                observer.before_checkpoint()
                save_checkpoint(self.writer, self.state)
            if stopping and self.state.iteration < self.config.train_iters:
                self.writer.finish()
                raise stopping
        self.writer.finish()

    def step(self) -> IterationMetrics:
        """One iteration: forward, backward, update, measures."""
        self.meter.start()
        result = run_step(self.state, self.schedule, self.source, self.run, device=self.device)
        return self.meter.stop(self.state.iteration, result)

    def _due(self, interval: int) -> bool:
        """Whether this iteration ends an interval, or the run."""
        return self.state.iteration % interval == 0 or self.state.iteration == self.config.train_iters

    def _validated(self, metrics: IterationMetrics) -> IterationMetrics:
        if self.validation is None or not self._due(self.config.validation_interval):
            return metrics
        return dataclasses.replace(metrics, validation_loss=self.validation.loss())

    def _check_watch(self) -> None:
        if self.state.watch.skipped_in_row >= self.config.max_skipped:
            self.writer.finish()  # a checkpoint under way is from before, and what the user will go back to
        self.state.watch.check(self.state.iteration, max_skipped=self.config.max_skipped)

    def _seconds_left(self) -> float:
        left = self.config.train_iters - self.state.iteration
        return round(left * sum(self._recent) / len(self._recent), 1)
