"""Reuses the results of earlier evaluations, which were moved aside because a setting changed.

A response is reused if everything that determines it is unchanged: model, prompt, seed, sampling parameters, limits and
engine. So a wider grid, more samples per problem, other statistics or another selection of problems generates only what
is new. A verdict is reused with its response if the tests of the problems, the
rules of the benchmark and the sandbox are the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.jsonl import FileCursor, JsonlWriter, iter_complete_records
from megatron_ssd.artifacts.manifest import keys_that_are_set
from megatron_ssd.artifacts.stage import Replaced, Stage
from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.evaluation.decode import DecodeJob
from megatron_ssd.evaluation.results import ModelName
from megatron_ssd.generation.store import Key

log = logging.getLogger(__name__)

_ONLY_BENCHMARK = "benchmark"  # the input of versions whose evaluations had one benchmark and no folder for it


def verdict_path(folder: Path, name: ModelName, setting: SamplingParams) -> Path:
    """The file of verdicts of one model under one setting, in the ``folder`` of a benchmark."""
    return folder / "verdicts" / name / f"{setting.label}.jsonl"


def reuse_results(stage: Stage, jobs: Mapping[str, Mapping[ModelName, DecodeJob]]) -> int:
    """Copy valid results from the folders that were moved aside into the work folder, starting with the newest.

    Skips a setting that already has a file in the work folder. After a kill, the next call copies the rest.

    Args:
        stage: the stage, after ``begin``.
        jobs: by benchmark and model; results are copied to their files.

    Returns:
        The number of responses that were reused.

    Raises:
        UserError: a line of an earlier folder is not a JSON object.
    """
    same_engine = [earlier for earlier in stage.replaced() if _same(earlier, stage, "engine")]
    reused = 0
    for benchmark, by_model in jobs.items():
        folders = [_Earlier.of(earlier, stage, benchmark) for earlier in same_engine]
        for name, job in by_model.items():
            for setting in job.settings:
                if folders and not job.path(setting).exists():
                    reused += _reuse_setting(folders, stage.work / benchmark, job, name, setting)
    if reused:
        log.info("eval: reused %d responses of earlier evaluations", reused)
    return reused


@dataclass(frozen=True, kw_only=True)
class _Earlier:
    """Earlier results of a benchmark; ``same_verdicts`` if its tests and how programs run are unchanged."""

    folder: Path
    same_verdicts: bool

    @classmethod
    def of(cls, earlier: Replaced, stage: Stage, benchmark: str) -> _Earlier:
        """The results of ``benchmark`` in a folder that was moved aside."""
        folder, role = earlier.folder / benchmark, f"benchmark {benchmark}"
        if _ONLY_BENCHMARK in earlier.inputs:
            folder, role = earlier.folder, _ONLY_BENCHMARK
        same_tests = earlier.inputs.get(role) == stage.inputs[f"benchmark {benchmark}"]
        same_rules = earlier.config.get("rules", {}).get(benchmark) == stage.config["rules"][benchmark]
        return cls(folder=folder, same_verdicts=same_tests and same_rules and _same(earlier, stage, "sandbox"))


def _reuse_setting(
    folders: list[_Earlier], work: Path, job: DecodeJob, name: ModelName, setting: SamplingParams
) -> int:
    samples, verdicts = _Target(job.path(setting)), _Target(verdict_path(work, name, setting))
    is_planned = job.planned(setting)
    for earlier in folders:
        new = samples.copy(earlier.folder / job.path(setting).relative_to(work), is_planned)
        if earlier.same_verdicts:
            verdicts.copy(verdict_path(earlier.folder, name, setting), _verdicts_on(new))
    verdicts.finish()  # first: a setting that has responses is skipped by the next call
    samples.finish()
    return len(samples.keys)


def _verdicts_on(keys: set[Key]) -> Callable[[dict[str, Any]], bool]:
    """Whether a verdict is about one of the samples, and the checker did not fail."""
    return lambda record: _key(record) in keys and record.get("status") != "infrastructure_error"


class _Target:
    """A file that collects records of several others, each key once, and appears only when it is complete."""

    def __init__(self, path: Path) -> None:
        self.keys: set[Key] = set()
        self._path, self._temporary = path, path.with_name(f".{path.name}.reused")
        self._temporary.unlink(missing_ok=True)

    def copy(self, source: Path, accepts: Callable[[dict[str, Any]], bool]) -> set[Key]:
        """Copy the records of ``source`` that are accepted and new; returns their keys."""
        new: set[Key] = set()
        if not source.is_file():
            return new
        with JsonlWriter(self._temporary) as writer:
            for record, _ in iter_complete_records(source, FileCursor()):
                if _key(record) not in self.keys and accepts(record):
                    writer.write(record)
                    self.keys.add(_key(record))
                    new.add(_key(record))
        return new

    def finish(self) -> None:
        """Rename the file to its final name if it has a record, else remove it."""
        if self.keys:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink(missing_ok=True)


def _key(record: dict[str, Any]) -> Key:
    return record.get("problem_id", ""), record.get("sample_index", -1)


def _same(earlier: Replaced, stage: Stage, section: str) -> bool:
    then, now = (keys_that_are_set({section: config.get(section)}) for config in (earlier.config, stage.config))
    return then == now
