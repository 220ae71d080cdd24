"""Tests that a killed or stopped training run resumes with exactly the numbers of an uninterrupted run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_ssd.process import DIE_WITH_PARENT
from tests.helpers.devices import without_gpu
from tests.helpers.paths import ROOT
from tests.helpers.preloaded import fresh_interpreters
from tests.helpers.training_run import COMMAND_LINE, iterations, metrics, write_dataset

ITERATIONS, SAVE_INTERVAL = 40, 8  # a signal takes the time of a few iterations
OVERRIDES = [
    *COMMAND_LINE, f"training.train_iters={ITERATIONS}", f"checkpoint.save_interval={SAVE_INTERVAL}",
    "training.segment_multiple=4",  # as context parallelism needs
]  # fmt: skip
pytestmark = without_gpu


def start(run_dir: Path, layout: str, *more: str) -> subprocess.Popen[str]:
    """Start ``launch/train.py``, which becomes the launcher of the layout's two processes. They end with it."""
    command = [sys.executable, "launch/train.py", *OVERRIDES, *more, f"parallel={layout}", f"run_dir={run_dir}"]
    environment = {**os.environ, DIE_WITH_PARENT: "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(run_dir: Path, layout: str, *more: str) -> list[tuple[float, float, str]]:
    """Run to the end and return losses, gradient norms and hashes of the sample ids."""
    with start(run_dir, layout, *more) as process:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors[-3000:]
    records = metrics(run_dir)
    assert [record["iteration"] for record in records] == list(range(1, ITERATIONS + 1))
    return [(record["loss"], record["grad_norm"], record["samples"]) for record in records]


def interrupt(run_dir: Path, layout: str, when: Callable[[], bool], number: signal.Signals, *more: str) -> int:
    """Start training, send the signal once ``when`` returns True, and return the exit status."""
    with start(run_dir, layout, *more) as process:
        deadline = time.monotonic() + 150
        while not when():
            assert process.poll() is None, process.communicate()[1][-3000:]
            assert time.monotonic() < deadline, "the condition was never met"
            time.sleep(0.002)
        process.send_signal(number)
        process.communicate(timeout=100)
        return process.returncode


def work(run_dir: Path) -> Path:
    return run_dir / "checkpoints.partial"


def saved(folder: Path) -> dict[str, int]:
    """Checkpoint -> the time at which it was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("iter_???????")}


def test_a_killed_and_stopped_run_resumes_exactly_and_closely_under_another_layout(tmp_path: Path) -> None:
    """The run is killed during an asynchronous save, stopped by a scheduler, and stopped at the keyboard.

    After the kill, a copy of it resumes under another layout. This is one test, because every start of training takes
    several seconds.
    """
    for name in ("uninterrupted", "broken"):
        write_dataset(tmp_path / name)
    with fresh_interpreters():
        expected = finish(tmp_path / "uninterrupted", "dp2")

    broken = tmp_path / "broken"
    first = work(broken) / f"iter_{SAVE_INTERVAL:07d}"
    while_writing = lambda: first.exists() and any(work(broken).glob("*.partial"))  # noqa: E731
    interrupt(broken, "dp2", while_writing, signal.SIGKILL, "checkpoint.save_async=true")
    assert not (broken / "checkpoints").exists()
    before = saved(work(broken))
    elsewhere = shutil.copytree(broken, broken.with_name("elsewhere"))

    for number, status in ((signal.SIGUSR1, 75), (signal.SIGINT, 130)):
        done = iterations(broken)
        is_further = lambda done=done: iterations(broken) > done + 3  # noqa: E731
        assert interrupt(broken, "dp2", is_further, number, "checkpoint.save_async=true") == status
        last = metrics(broken, "checkpoints.partial")[-1]["iteration"]
        assert max(saved(work(broken))) == f"iter_{last:07d}", "the last iteration was not saved"
    assert finish(broken, "dp2", "checkpoint.save_async=true") == expected
    assert before.items() <= saved(broken / "checkpoints").items(), "a finished checkpoint was written again"
    assert not list((broken / "checkpoints").glob("*.partial"))

    moved = finish(elsewhere, "dp2", "parallel.context_parallel_size=2")
    assert [samples for _, _, samples in moved] == [samples for _, _, samples in expected]
    # Forty iterations of fp32, summed in a different order.
    assert [loss for loss, _, _ in moved] == pytest.approx([loss for loss, _, _ in expected], rel=2e-5)
