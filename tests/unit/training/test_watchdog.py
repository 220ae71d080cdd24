"""Tests for the watchdog of training steps; tests/cluster lets a rank of a job hang."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from megatron_ssd.training.watchdog import StepWatchdog
from tests.helpers.paths import ROOT

HANGS = """
import time
from unittest import mock
from megatron_ssd.training import watchdog
watchdog._SECONDS_FOR_OTHERS = 0.1
def waiting_for_another_rank():
    time.sleep(60)
with mock.patch.object(watchdog.dist, "get_rank", lambda: 3):
    steps = watchdog.StepWatchdog(factor=3.0, least_seconds=0.5)
    with steps.watch(1):
        time.sleep(0.4)  # so that the limit of the next one is longer
    with steps.watch(2):
        time.sleep(0.8)
    print("passed", flush=True)
    watchdog._SECONDS_FOR_OTHERS = 60.0
    with steps.watch(3):
        time.sleep(2.5)
    print("passed", flush=True)
    watchdog._SECONDS_FOR_OTHERS = 0.1
    with steps.watch(4):
        waiting_for_another_rank()
"""


def test_a_step_that_hangs_ends_the_process_and_shows_where() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 75
    assert done.stdout == "passed\npassed\n"
    assert "rank 3: iteration 3 has ended after all" in done.stderr
    assert "rank 3: iteration 4 has not ended after" in done.stderr
    assert "in waiting_for_another_rank" in done.stderr


@pytest.mark.parametrize("least_seconds", [None, 600.0])
def test_a_step_that_ends_or_fails_leaves_no_thread(least_seconds: float | None) -> None:
    before = threading.active_count()
    watchdog = StepWatchdog(factor=20.0, least_seconds=least_seconds)
    for number in range(3):
        with watchdog.watch(number):
            pass
    with pytest.raises(KeyError), watchdog.watch(4):
        raise KeyError
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(5)
    assert threading.active_count() == before
