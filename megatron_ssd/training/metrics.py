"""What training measures: one JSON line an iteration, each iteration once, and the boards that show them.

After a resume the lines past the checkpoint are cut off; the iterations are run, and written, again.
"""

from __future__ import annotations

import dataclasses
import math
import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from megatron_ssd.artifacts.jsonl import JsonlWriter, iter_jsonl, truncate_partial_line
from megatron_ssd.training.boards import Board

FILE_NAME = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class IterationMetrics:
    """One iteration. A number that is not finite is written as null, as is what was not measured."""

    iteration: int
    loss: float  # weighted mean over the global batch, before the update
    grad_norm: float  # L2 over the whole model, before clipping
    learning_rate: float
    valid_tokens: int  # positions that weigh anything in the loss
    tokens: int  # all positions, padding and prompts included
    tokens_per_second: float  # of ``tokens``, over all processes
    tokens_per_second_per_gpu: float
    tflops_per_second_per_gpu: float | None = None  # of the model's own products, recomputation not counted
    mfu: float | None = None  # that, as a share of the device's peak; null where the peak is unknown
    seconds: float
    seconds_left: float | None = None
    peak_memory_gib: float  # the most of any process: device memory on a GPU, resident set on a CPU
    skipped: bool = False  # loss or gradient was not finite, and nothing was updated
    spike: bool = False  # the loss jumped, see training.spike_factor
    validation_loss: float | None = None  # where it was measured, after the update
    samples: str = ""  # hash of the documents in the global batch, in order
    experts: dict[str, Any] | None = None  # how a mixture of experts spread the tokens; columns of their own

    def row(self) -> dict[str, Any]:
        """As a JSON object."""
        values = dataclasses.asdict(self)
        values |= values.pop("experts") or {}
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }


class MetricsWriter:
    """Writes ``folder/metrics.jsonl`` and feeds ``boards``.

    Args:
        done: iterations of the checkpoint that training goes on from; later lines of an earlier start go.
        log_interval: boards get every so many iterations, and every one that validates; the file gets all.
    """

    def __init__(self, folder: Path, *, done: int, boards: Sequence[Board] = (), log_interval: int) -> None:
        path = folder / FILE_NAME
        _cut_after(path, done)
        self._file = JsonlWriter(path)
        self._log_interval = log_interval
        self._boards = boards

    def write(self, metrics: IterationMetrics) -> None:
        """Append one iteration."""
        row = metrics.row()
        self._file.write(row)
        if metrics.iteration % self._log_interval == 0 or metrics.validation_loss is not None:
            values = {key: float(value) for key, value in row.items() if isinstance(value, (bool, int, float))}
            for board in self._boards:
                board.show(values, metrics.iteration)

    def flush(self) -> None:
        """Force what was written to the disk; called with every checkpoint."""
        self._file.flush()
        for board in self._boards:
            board.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        for board in self._boards:
            board.close()


def peak_memory_gib(device: str) -> float:
    """The most memory that this process has held."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _cut_after(path: Path, done: int) -> None:
    """Cut ``path`` back to iterations up to ``done``."""
    if not path.exists():
        return
    truncate_partial_line(path)
    kept = sum(1 for row in iter_jsonl(path) if row["iteration"] <= done)
    with path.open("rb+") as file:
        for _ in range(kept):
            file.readline()
        file.truncate(file.tell())
        os.fsync(file.fileno())
