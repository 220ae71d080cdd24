"""How far each stage of a run is, read from the run folder alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.config.run import RunConfig
from megatron_ssd.generation.scoring import SCORES_FILE
from megatron_ssd.training.checkpoint_folder import list_checkpoints
from megatron_ssd.training.stage import METRICS_FILE

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Progress:
    """Finished units of a stage's unfinished work.

    Args:
        done: finished so far.
        total: all of them; None if the run folder does not say.
        unit: what is counted, in the plural.
        kept: those that the next start does not do again.
    """

    done: int
    total: int | None
    unit: str
    kept: int

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total:,}"
        lost = "" if self.kept == self.done else f", {self.kept:,} saved"
        return f"{self.done:,}{of} {self.unit}{lost}"


def stage_progress(config: RunConfig, stage: str) -> Progress | None:
    """How far the unfinished work of ``stage`` is; None if there is none, or if it is a stage that does not resume."""
    run_dir = Path(config.run_dir)
    work = run_dir / f"{stage}.partial"
    if not work.is_dir():
        return None
    if stage == "samples":
        done = _lines(work.glob("*.jsonl"))
        return Progress(done, _num_samples(config), "samples", done)
    if stage == "scores":
        done = _lines([work / SCORES_FILE])
        return Progress(done, _num_samples(config), "scores", done)
    if stage == "checkpoints":
        saved = max((iteration for iteration, _ in list_checkpoints(work)), default=0)
        return Progress(_lines([work / METRICS_FILE]), config.training.train_iters, "iterations", saved)
    if stage == "eval":
        done = _lines(work.rglob("*.jsonl"))  # each response is decoded, then graded
        return Progress(done, None, "responses and verdicts", done)
    return None


def _num_samples(config: RunConfig) -> int | None:
    problems = Path(config.run_dir) / "problems"
    if config.sampling is None or not problems.is_dir():
        return None
    return read_manifest(problems).counts["problems"] * config.sampling.num_samples


def _lines(paths: Iterable[Path]) -> int:
    count = 0
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    count += chunk.count(b"\n")
    return count
