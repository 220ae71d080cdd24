"""What rank 0 does beside training: the metrics files, the progress bar, the stage's clock."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from tqdm import tqdm

from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.progress import progress
from megatron_ssd.training.metrics import IterationMetrics, MetricsWriter


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
    """Writes metrics and moves the progress bar."""

    def __init__(self, stage: Stage, writer: MetricsWriter, *, done: int, train_iters: int) -> None:
        self._stage, self._writer = stage, writer
        self._bar: tqdm[None] = progress(desc="training", unit="iteration", total=train_iters, initial=done)

    def after_iteration(self, metrics: IterationMetrics) -> None:
        """Write the iteration and show it."""
        self._writer.write(metrics)
        self._bar.set_postfix(
            loss=f"{metrics.loss:.4f}",
            lr=f"{metrics.learning_rate:.2e}",
            tokens_per_second=f"{metrics.tokens_per_second:.0f}",
            refresh=False,
        )
        self._bar.update()

    def before_checkpoint(self) -> None:
        """Make the metrics durable and note the time spent."""
        self._writer.flush()
        self._stage.note_time()

    def __enter__(self) -> Self:
        self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        self._writer.__exit__(kind, error, trace)
