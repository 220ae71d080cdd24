"""What training measures: one JSON line and one TensorBoard step an iteration, each iteration once.

After a resume the lines past the checkpoint are cut off; the iterations are run, and written, again.
"""

from __future__ import annotations

import dataclasses
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from megatron_ssd.artifacts.jsonl import JsonlWriter, heal, iter_jsonl

FILE_NAME = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class IterationMetrics:
    """One iteration. ``loss`` is the mean over the global batch's valid tokens, before the step."""

    iteration: int
    loss: float
    grad_norm: float
    learning_rate: float
    valid_tokens: int  # positions that carry loss
    tokens: int  # all positions, padding and prompts included
    tokens_per_second: float  # of ``tokens``, over all processes
    seconds: float
    peak_memory_gib: float  # of this process: device memory on a GPU, resident set on a CPU


class MetricsWriter:
    """Writes ``metrics.jsonl`` and, where asked for, ``tensorboard/`` below ``folder``.

    Args:
        done: iterations of the checkpoint that training goes on from; later lines of an earlier start go.
        log_interval: TensorBoard gets every so many iterations, the file all of them.
    """

    def __init__(self, folder: Path, *, done: int, tensorboard: bool, log_interval: int) -> None:
        path = folder / FILE_NAME
        _cut_after(path, done)
        self._file = JsonlWriter(path)
        self._log_interval = log_interval
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def write(self, metrics: IterationMetrics) -> None:
        """Append one iteration."""
        row = dataclasses.asdict(metrics)
        self._file.write(row)
        if self._board is not None and metrics.iteration % self._log_interval == 0:
            for name, value in row.items():
                if name != "iteration":
                    self._board.add_scalar(f"train/{name}", value, metrics.iteration)

    def flush(self) -> None:
        """Force what was written to the disk; called with every checkpoint."""
        self._file.flush()
        if self._board is not None:
            self._board.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def peak_memory_gib() -> float:
    """The most memory that this process has held."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _cut_after(path: Path, done: int) -> None:
    """Cut ``path`` back to iterations up to ``done``."""
    if not path.exists():
        return
    heal(path)
    kept = sum(1 for row in iter_jsonl(path) if row["iteration"] <= done)
    with path.open("rb+") as file:
        for _ in range(kept):
            file.readline()
        file.truncate(file.tell())
        os.fsync(file.fileno())
