"""Tests that a scheduler's signal stops a stage and its pipeline with the status that has them started again."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ssd.process import child_environment

STAGE = """
import sys, time
from megatron_ssd.cli.entry import run_guarded
def work():
    try:
        print("started", flush=True)
        time.sleep(60)
    finally:
        time.sleep(0.2)
        print("saved", flush=True)
run_guarded(work)
"""
PIPELINE = """
import sys
from megatron_ssd.cli.entry import run_guarded
from megatron_ssd.process import run_child
run_guarded(lambda: run_child([sys.executable, sys.argv[1]]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("under_pipeline", [False, True])
@pytest.mark.parametrize("to_group", [False, True])
def test_a_stage_ends_with_its_work_saved_before_its_pipeline_does(
    tmp_path: Path, number: int, under_pipeline: bool, to_group: bool
) -> None:
    """SLURM sends its signals to every process of a step, ``kill`` only to one."""
    stage, pipeline = tmp_path / "stage.py", tmp_path / "pipeline.py"
    stage.write_text(STAGE)
    pipeline.write_text(PIPELINE)
    process = subprocess.Popen(
        [sys.executable, *([pipeline] if under_pipeline else []), stage],
        env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    subprocess.run(["kill", f"-{number}", "--", f"{'-' if to_group else ''}{process.pid}"], check=True)
    printed, error = process.communicate(timeout=60)
    assert (process.returncode, printed) == (75, "saved\n")
    assert error == "stopped before the end: the state is saved; run the same command to resume\n"
