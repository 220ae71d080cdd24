"""One wish to stop is noted, however often it arrives; a second one ends the process."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

CHILD = """
import os, signal, sys, time
import torch.distributed as dist
from megatron_ssd.training import stop
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
number, stop._ONE_WISH_SECONDS = int(sys.argv[1]), float(sys.argv[2])
with stop.StopRequest("cpu") as request:
    print(request.agreed(), flush=True)
    os.kill(os.getpid(), number)
    print(request.agreed().__name__, flush=True)
    os.kill(os.getpid(), number)
    print("still here", flush=True)
dist.destroy_process_group()
"""


def told(number: signal.Signals, one_wish_seconds: float) -> tuple[int, list[str]]:
    """(exit status, lines) of a process that sends ``number`` to itself twice."""
    command = [sys.executable, "-c", CHILD, str(int(number)), str(one_wish_seconds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    ("number", "wish"),
    [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "Requeue"), (signal.SIGUSR1, "Requeue")],
)
def test_a_wish_that_arrives_twice_at_once_is_one(number: signal.Signals, wish: str) -> None:
    assert told(number, 60.0) == (0, ["None", wish, "still here"])


def test_a_second_wish_ends_the_process_at_once() -> None:
    status, lines = told(signal.SIGTERM, -1.0)
    assert (status, lines) == (-signal.SIGTERM, ["None", "Requeue"])
