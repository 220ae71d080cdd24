"""What rank 0 does beside training: the metrics files, the progress bar, the stage's clock, and warnings."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Protocol, Self

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.progress import progress
from megatron_ssd.training.metrics import IterationMetrics, MetricsWriter

log = logging.getLogger(__name__)


class Observer(Protocol):
    """What rank 0 shows and writes; the other ranks have one that does nothing."""

    def after_iteration(self, metrics: IterationMetrics) -> None:
        """Take the measures of an iteration."""

    def before_checkpoint(self) -> None:
        """Make everything durable that a checkpoint relies on."""


class Silent:
    """The observer of every rank but the first."""

    def after_iteration(self, metrics: IterationMetrics) -> None:
        """Nothing."""

    def before_checkpoint(self) -> None:
        """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Recorder:
    """Writes metrics, moves the progress bar, and warns of what an operator should look at."""

    def __init__(self, stage: Stage, writer: MetricsWriter, *, done: int, train_iters: int) -> None:
        self._stage, self._writer = stage, writer
        self._bar: tqdm[None] = progress(desc="training", unit="iteration", total=train_iters, initial=done)
        self._redirected = logging_redirect_tqdm()

    def after_iteration(self, metrics: IterationMetrics) -> None:
        """Write the iteration and show it."""
        self._writer.write(metrics)
        shown = {
            "loss": f"{metrics.loss:.4f}",
            "lr": f"{metrics.learning_rate:.2e}",
            "tokens/s": f"{metrics.tokens_per_second:,.0f}",
        }
        if metrics.mfu is not None:
            shown["mfu"] = f"{metrics.mfu:.1%}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()
        if metrics.skipped:
            log.warning(
                "iteration %d: loss %s, gradient norm %s: not finite, update skipped",
                metrics.iteration, metrics.loss, metrics.grad_norm,
            )  # fmt: skip
        if metrics.spike:
            log.warning("iteration %d: loss %.4f jumped (training.spike_factor)", metrics.iteration, metrics.loss)
        if metrics.validation_loss is not None:
            log.info("iteration %d: validation loss %.4f", metrics.iteration, metrics.validation_loss)

    def before_checkpoint(self) -> None:
        """Make the metrics durable and note the time spent."""
        self._writer.flush()
        self._stage.note_time()

    def __enter__(self) -> Self:
        self._redirected.__enter__()
        self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        self._writer.__exit__(kind, error, trace)
        self._redirected.__exit__(kind, error, trace)
