"""Runs the cells of the experiment on real models one after another, through the launch scripts.

A cell whose results are stored is skipped, so a fresh machine continues with the next one. A cell that was interrupted
resumes with the same command. Runs are in a folder that is not committed; a training run, with its 8 GB of weights and
optimizer state, is removed after the last cell that needs it.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.real_coder_cells import CELLS, Cell
from benchmarks.real_coder_results import chosen_learning_rate, is_finished, store
from megatron_ssd.cli.compose import text_override
from megatron_ssd.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
Start = Callable[[Sequence[str]], int]


def start(command: Sequence[str]) -> int:
    """Run a command to its end; returns its exit status."""
    return subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode


def run(
    models: Path, data: Path, runs: Path, results: Path, *, names: Sequence[str] = (), start: Start = start
) -> None:
    """Run the cells ``names``, or all, in order, except those that are finished.

    Args:
        models: folder with the folders of the bases.
        data: folder that ``prepare`` wrote.
        runs: folder of the runs.
        results: folder of the committed results.
        start: runs a command and returns its exit status; tests replace it.

    Raises:
        UserError: there is no such cell, a script failed, or a cell depends on one that is not finished.
    """
    if unknown := set(names) - {cell.name for cell in CELLS}:
        raise UserError(f"--cell {', '.join(sorted(unknown))}", rule="there is no such cell",
                        fix=f"use one of {', '.join(cell.name for cell in CELLS)}")  # fmt: skip
    for cell in CELLS:
        if names and cell.name not in names:
            continue
        if is_finished(cell, results):
            print(f"{cell.name}: finished before", flush=True)
            continue
        if cell.needs_learning_rate:
            cell = cell.with_learning_rate(chosen_learning_rate(results))
        before = _core_seconds()
        run_dir = runs / (cell.training or cell.name)
        for command in commands(cell, models=models, data=data, runs=runs):
            if status := start(command):
                raise UserError(f"cell {cell.name}", rule=f"{command[0]} ended with status {status}",
                                fix="see its message above; the same command resumes the cell")  # fmt: skip
        hours = (_core_seconds() - before) / 3600
        store(cell, run_dir, results, core_hours=hours)
        print(f"{cell.name}: {hours:.2f} core hours since this start, {cell.hours} estimated", flush=True)
        if cell.is_last:
            shutil.rmtree(run_dir)


def commands(cell: Cell, *, models: Path, data: Path, runs: Path) -> list[list[str]]:
    """The launch scripts of a cell with their arguments: training, if it needs any, then the evaluation.

    If the cell uses the samples of another run, and that run is there, its samples are linked into this one.
    """
    run_dir = runs / (cell.training or cell.name)
    common = [
        "+experiment=real_coder", "replace=true", *cell.train, text_override("run_dir", str(run_dir.absolute())),
        _path("model", models / cell.model), _path("problems", data / "train/short"),
    ]  # fmt: skip
    found = []
    if cell.training:
        _link_samples(runs / cell.samples_of if cell.samples_of else None, run_dir)
        kept_out = {"validation": ("validation", "text"), "codeforces": ("test/codeforces", "question_content")}
        sets = [
            setting
            for name, (file, column) in kept_out.items()
            for setting in (_path(f"contamination.sets.{name}", data / f"{file}.jsonl"),
                            f"contamination.sets.{name}.columns=[{column}]")
        ]  # fmt: skip
        found.append(["launch/pipeline.py", "--until=export", *common, *_benchmark("test", data), *sets])
    evaluate = [*_benchmark(cell.benchmark, data), f"evaluation.models=[{cell.decodes}]", *cell.evaluate]
    return [*found, ["launch/evaluate.py", *common, *evaluate]]


def _benchmark(name: str, data: Path) -> list[str]:
    if name == "validation":
        return ["benchmark=mbpp", "benchmark.sets.mbpp.split=all",
                _path("benchmark.sets.mbpp", data / "validation.jsonl")]  # fmt: skip
    if name == "codeforces":
        return ["benchmark=livecodebench", _path("benchmark.sets.livecodebench", data / "test/codeforces.jsonl")]
    mbpp = data / ("ground" if name == "ground" else "test") / "mbpp_plus.jsonl"
    return [_path("benchmark.sets.humaneval_plus", data / "test/humaneval_plus.jsonl"),
            _path("benchmark.sets.mbpp_plus", mbpp)]  # fmt: skip


def _path(section: str, path: Path) -> str:
    return text_override(f"{section}.path", str(path.absolute()))


def _link_samples(source: Path | None, run_dir: Path) -> None:
    for name in ("problems", "samples"):
        if source and (source / name).is_dir() and not (run_dir / name).exists():
            shutil.copytree(source / name, run_dir / name, copy_function=os.link)


def _core_seconds() -> float:
    """CPU time of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
