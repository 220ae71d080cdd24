"""Logs the metrics of each iteration.

``metrics.jsonl`` has exactly one line per iteration: a resume cuts off the lines after the checkpoint, and those
iterations run and are logged again.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from megatron_ssd.artifacts.jsonl import FileCursor, JsonlWriter, iter_complete_records
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import require
from megatron_ssd.progress import progress
from megatron_ssd.training.stage import METRICS_FILE
from megatron_ssd.training.step import StepResult

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class IterationMetrics(StepResult):
    """One iteration. A number that is not finite, or was not measured, is written as null."""

    iteration: int
    tokens: int  # of the samples, prompts included
    computed_tokens: int  # with padding
    tokens_per_second: float  # of ``tokens``, over all processes
    tokens_per_second_per_gpu: float
    tflops_per_second_per_gpu: float | None = None  # of the model's own products, recomputation not counted
    mfu: float | None = None  # that, as a share of the device's peak; null if the peak is unknown
    seconds: float
    seconds_left: float | None = None
    validation_loss: float | None = None  # if measured in this iteration, after the update
    samples: str = ""  # short hash of the sample numbers in the global batch, in order
    experts: dict[str, Any] | None = None  # the load of the experts; written as separate columns

    def to_json(self) -> dict[str, Any]:
        """One record of ``metrics.jsonl``."""
        values = {"iteration": self.iteration, **dataclasses.asdict(self)}  # a line begins with its number
        values |= values.pop("experts") or {}
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }

    def scalars(self) -> dict[str, float]:
        """Tag -> number, for experiment trackers."""
        return {
            f"train/{key}": float(value)
            for key, value in self.to_json().items()
            if isinstance(value, bool | int | float) and key != "iteration"
        }


class MetricsLogger(Protocol):
    """Takes the metrics of each iteration on rank 0."""

    def log(self, metrics: IterationMetrics) -> None:
        """Take one iteration."""

    def flush(self) -> None:
        """Make everything durable; called before each checkpoint."""

    def close(self) -> None:
        """Write what is left and release files; called once, at the end."""


class JsonlLogger(JsonlWriter):
    """Writes ``folder/metrics.jsonl``.

    Args:
        done: iterations of the checkpoint that training resumes from; later lines of an earlier start are removed.
    """

    def __init__(self, folder: Path, *, done: int) -> None:
        _cut_after(folder / METRICS_FILE, done)
        super().__init__(folder / METRICS_FILE)

    def log(self, metrics: IterationMetrics) -> None:
        """Append a line."""
        self.write(metrics.to_json())


class TensorBoardLogger:
    """Writes event files to ``folder``.

    Args:
        done: iterations of the checkpoint that training resumes from; later events of an earlier start are purged.
        interval: number of iterations per logged one; an iteration that validates is always logged.
    """

    def __init__(self, folder: Path, *, done: int, interval: int) -> None:
        self._writer: Any = SummaryWriter(str(folder), purge_step=done + 1)
        self._interval = interval

    def log(self, metrics: IterationMetrics) -> None:
        """Add one iteration."""
        if _is_shown(metrics, self._interval):
            for tag, value in metrics.scalars().items():
                self._writer.add_scalar(tag, value, metrics.iteration)

    def flush(self) -> None:
        """Write to the files."""
        self._writer.flush()

    def close(self) -> None:
        """Write and close the files."""
        self._writer.close()


class WandbLogger:
    """Logs to a run of Weights & Biases, which a restart resumes under the same id.

    Args:
        config: shown as the run's configuration; the client keeps its files in ``run_dir``. An iteration that validates
            is always logged, and of others every ``training.log_interval``-th.
        run_id: the same for every start of one training run.
    """

    def __init__(self, config: RunConfig, *, run_id: str) -> None:
        # By name, because wandb is an optional package without types here.
        self._run: Any = importlib.import_module("wandb").init(
            project=config.training.wandb_project,
            id=run_id,
            resume="allow",
            dir=config.run_dir,
            config=dataclasses.asdict(config),
            name=Path(config.run_dir).resolve().name,
        )
        self._interval = config.training.log_interval

    def log(self, metrics: IterationMetrics) -> None:
        """Add one iteration. The client ignores one that was logged before the resume."""
        if _is_shown(metrics, self._interval):
            self._run.log(metrics.scalars(), step=metrics.iteration)

    def flush(self) -> None:
        """Do nothing: the client sends by itself."""

    def close(self) -> None:
        """Wait until everything is sent."""
        self._run.finish()


class ProgressLogger:
    """Updates the progress bar, warns of skipped updates and loss spikes, and records the time that the stage took."""

    def __init__(self, stage: Stage, *, done: int, train_iters: int) -> None:
        self._stage = stage
        self._bar: tqdm[None] = progress(desc="training", unit="iteration", total=train_iters, initial=done)
        self._redirected = logging_redirect_tqdm()
        self._redirected.__enter__()

    def log(self, metrics: IterationMetrics) -> None:
        """Show one iteration."""
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
            log.warning("iteration %d: loss spike: %.4f (training.spike_factor)", metrics.iteration, metrics.loss)
        if metrics.validation_loss is not None:
            log.info("iteration %d: validation loss %.4f", metrics.iteration, metrics.validation_loss)

    def flush(self) -> None:
        """Record the time spent so far."""
        self._stage.note_time()

    def close(self) -> None:
        """Close the bar."""
        self._bar.close()
        self._redirected.__exit__(None, None, None)


def check_wandb(project: str | None) -> None:
    """Raise ``ConfigError`` if ``project`` is named and the client is not installed."""
    require(
        project is None or importlib.util.find_spec("wandb") is not None,
        f"training.wandb_project = {project}",
        rule="needs the package wandb, which is not installed",
        fix="pip install wandb in this environment, or leave training.wandb_project out",
    )


def _is_shown(metrics: IterationMetrics, interval: int) -> bool:
    return metrics.iteration % interval == 0 or metrics.validation_loss is not None


def _cut_after(path: Path, done: int) -> None:
    """Cut ``path`` back to iterations up to ``done``."""
    if not path.exists():
        return
    cursor, end = FileCursor(), 0
    for record, _ in iter_complete_records(path, cursor):
        if record["iteration"] <= done:
            end = cursor.offset
    with path.open("rb+") as file:
        file.truncate(end)
        os.fsync(file.fileno())
