"""What earlier evaluations of a run left that still holds, after a setting was changed and they were moved aside.

A response is kept where nothing that decides it has changed: model, prompt, seed, decoding, limits and engine. A wider
grid, more samples a problem, other statistics or another choice of problems therefore draw only what is new. A verdict
is kept with its response, where the problems' tests and the sandbox are the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.jsonl import FileCursor, JsonlWriter, iter_complete_records
from megatron_ssd.artifacts.stage import Replaced, Stage
from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.evaluation.decode import DecodeJob
from megatron_ssd.evaluation.results import ModelName
from megatron_ssd.generation.store import Key

log = logging.getLogger(__name__)


def verdict_path(folder: Path, name: ModelName, setting: SamplingParams) -> Path:
    """The file of verdicts of one model under one setting, in an evaluation's ``folder``."""
    return folder / "verdicts" / name / f"{setting.label}.jsonl"


def take_over(stage: Stage, jobs: Mapping[ModelName, DecodeJob]) -> int:
    """Copy into the stage's work folder what still holds of the folders that were moved aside, the newest first.

    A setting that has a file in the work folder already is left alone. Killed anywhere, it does the rest when it is
    called again.

    Args:
        stage: begun.
        jobs: by model; their files are the targets.

    Returns:
        The number of responses that were kept.

    Raises:
        UserError: a row of an earlier folder is no JSON object.
    """
    same_engine = [earlier for earlier in stage.replaced() if _same(earlier, stage, "engine")]
    kept = 0
    for name, job in jobs.items():
        for setting in job.settings:
            if same_engine and not job.path(setting).exists():
                kept += _take_over_setting(same_engine, stage, job, name, setting)
    if kept:
        log.info("eval: %d responses of earlier evaluations still hold and are kept", kept)
    return kept


def _take_over_setting(
    folders: list[Replaced], stage: Stage, job: DecodeJob, name: ModelName, setting: SamplingParams
) -> int:
    samples, verdicts = _Target(job.path(setting)), _Target(verdict_path(stage.work, name, setting))
    is_planned = job.planned(setting)
    for earlier in folders:
        source = earlier.folder / job.path(setting).relative_to(stage.work)
        new = samples.copy(source, is_planned)
        if _same(earlier, stage, "sandbox") and earlier.inputs.get("benchmark") == stage.inputs["benchmark"]:
            verdicts.copy(verdict_path(earlier.folder, name, setting), _verdicts_on(new))
    verdicts.finish()  # first: where there are responses, nothing is looked for again
    samples.finish()
    return len(samples.keys)


def _verdicts_on(keys: set[Key]) -> Callable[[dict[str, Any]], bool]:
    """Whether a verdict says something about one of the samples; where the judge failed it says nothing."""
    return lambda row: _key(row) in keys and row.get("status") != "infrastructure_error"


class _Target:
    """A file that appears whole, with the rows of several others, each key once."""

    def __init__(self, path: Path) -> None:
        self.keys: set[Key] = set()
        self._path, self._temporary = path, path.with_name(f".{path.name}.kept")
        self._temporary.unlink(missing_ok=True)

    def copy(self, source: Path, accepts: Callable[[dict[str, Any]], bool]) -> set[Key]:
        """Take the rows of ``source`` that are accepted and new; returns their keys."""
        new: set[Key] = set()
        if not source.is_file():
            return new
        with JsonlWriter(self._temporary) as writer:
            for row, _ in iter_complete_records(source, FileCursor()):
                if _key(row) not in self.keys and accepts(row):
                    writer.write(row)
                    self.keys.add(_key(row))
                    new.add(_key(row))
        return new

    def finish(self) -> None:
        """Give the file its name, where any row was taken."""
        if self.keys:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink(missing_ok=True)


def _key(row: dict[str, Any]) -> Key:
    return row.get("problem_id", ""), row.get("sample_index", -1)


def _same(earlier: Replaced, stage: Stage, section: str) -> bool:
    return bool(earlier.config.get(section) == stage.config[section])
