"""Fixtures of the end-to-end tests, which share one small base model and one complete run of the pipeline."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.jsonl import complete_records, samples_by_key, write_jsonl
from tests.helpers.killed import kill_when
from tests.helpers.paths import ROOT
from tests.helpers.preloaded import fresh_interpreters

# The demo, scaled down so that the loop takes a minute or two. The model learns little, but every path runs. Starting
# an engine or a training process takes longer than its work here, so there is one of each, except with PARALLEL.
SMALL = (
    "+experiment=demo",
    "parallel=single",
    "engine.data_parallel_size=1",
    "minicode.num_train_problems=64",
    "minicode.num_test_problems=12",
    "minicode.tests_per_problem=3",
    "generation.shard_rows=16",
    "training.train_iters=8",
    "training.global_batch_size=8",
    "training.micro_batch_size=4",
    "checkpoint.save_interval=2",
    "checkpoint.keep_last=1",
    "checkpoint.keep_every=4",
    "optimizer.lr_warmup_iters=2",
    "evaluation.num_samples=5",
    "evaluation.temperatures=[1.0]",
    "evaluation.top_ps=[0.8]",
)
# As in the demo: two engines, and training by two processes.
PARALLEL = ("parallel=tp2", "engine.data_parallel_size=2")
SMALL_BASE = (
    "parallel=single",
    "minicode.num_documents=3000",
    "training.train_iters=20",
    "checkpoint.save_interval=10",
    "optimizer.lr_warmup_iters=5",
)


@dataclass(frozen=True)
class Loop:
    """Starts the pipeline with the base model in ``base_dir``, on minicode and on the few problems of ``plus``."""

    base_dir: Path
    plus: Path

    def command(self, run_dir: Path, *extra: str) -> list[str]:
        """The pipeline's command line for ``run_dir``."""
        base = [f"base.base_dir={self.base_dir}", f"base.overrides={list(SMALL_BASE)}"]
        benchmarks = ["benchmark=[minicode,humaneval_plus]", f"benchmark.sets.humaneval_plus.path={self.plus}"]
        script = str(ROOT / "launch/pipeline.py")
        return [sys.executable, script, *SMALL, *base, *benchmarks, f"run_dir={run_dir}", *extra]

    def run(self, run_dir: Path, *extra: str) -> subprocess.CompletedProcess[str]:
        """Run the pipeline to its end. If it fails, the test fails with its output."""
        done = subprocess.run(self.command(run_dir, *extra), capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        return done

    def kill_when(self, run_dir: Path, ready: Callable[[], bool], *extra: str, number: int = signal.SIGKILL) -> int:
        """As ``tests.helpers.killed.kill_when``, with the pipeline as the command."""
        log = run_dir.with_name(f"{run_dir.name}.killed.log")
        return kill_when(self.command(run_dir, *extra), ready, log, number)

    def copy(self, finished: Path, run_dir: Path, *stages: str) -> Path:
        """Copy the published ``stages`` of ``finished`` to ``run_dir``, and return ``run_dir``."""
        for stage in stages:
            shutil.copytree(finished / stage, run_dir / stage)
        return run_dir


@pytest.fixture(scope="session")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """The pipeline, with a base model that is trained on first use."""
    base = Path(os.environ.get("MEGATRON_SSD_TEST_BASE", tmp_path_factory.mktemp("base")))
    return Loop(base, write_jsonl(tmp_path_factory.mktemp("benchmark") / "plus.jsonl", map(_plus_row, range(4))))


def _plus_row(number: int) -> dict[str, Any]:
    """A row in evalplus's layout of HumanEval+."""
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def add_{number}(x: int) -> int:\n    """Return the sum of the argument and {number}."""\n',
        "canonical_solution": f"    return x + {number}\n",
        "entry_point": f"add_{number}",
        "base_input": [[1]],
        "plus_input": [[2], [-3]],
        "atol": 0,
    }


@dataclass(frozen=True)
class Interrupted:
    """A complete run that was killed while it sampled and while it evaluated, and resumed.

    Args:
        run_dir: the run's folder. Its training and export were never interrupted.
        samples: the samples that were there at the first kill, by problem and sample index.
        generations: the responses that were there at the second kill, by model and file name. Those of the base were
            complete.
    """

    run_dir: Path
    samples: dict[tuple[str, int], dict[str, Any]]
    generations: dict[str, dict[str, list[dict[str, Any]]]]


@pytest.fixture(scope="session")
def interrupted(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    """The run that the end-to-end tests share, so that engines start as rarely as possible.

    Every stage of it runs in a fresh interpreter at least once.
    """
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    partial = run_dir / "samples.partial"
    with fresh_interpreters():
        loop.kill_when(run_dir, lambda: len(samples_by_key(partial)) >= 8)
    assert not (run_dir / "samples").exists()
    samples = samples_by_key(partial)
    loop.run(run_dir, "--until=export", *PARALLEL)

    partial = run_dir / "eval.partial" / "minicode" / "generations"
    loop.kill_when(run_dir, lambda: sum(map(len, _responses(partial / "ssd").values())) >= 10)
    assert not (run_dir / "eval").exists()
    generations = {model: _responses(partial / model) for model in ("base", "ssd")}
    with fresh_interpreters():
        loop.run(run_dir)
    return Interrupted(run_dir, samples, generations)


def _responses(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {path.name: complete_records(path) for path in folder.glob("*.jsonl")}


@pytest.fixture(scope="session")
def finished(interrupted: Interrupted) -> Path:
    """The folder of a complete run."""
    return interrupted.run_dir
