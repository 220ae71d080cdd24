"""Tests for the graceful shutdown of training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from megatron_ssd.errors import Requeue
from megatron_ssd.training.trainer import GracefulShutdown
from tests.helpers.paths import ROOT


@pytest.fixture(scope="module", autouse=True)
def _one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("number", "request_type"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Requeue), (signal.SIGUSR1, Requeue)],
)
def test_a_signal_that_arrives_twice_at_once_is_one_request(
    number: signal.Signals, request_type: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_ssd.training.trainer._SAME_REQUEST_SECONDS", 60.0)
    with GracefulShutdown("cpu") as shutdown:
        assert shutdown.requested() is None
        for _ in range(2):
            os.kill(os.getpid(), number)
            assert shutdown.requested() is request_type


def test_a_second_request_ends_the_process_immediately() -> None:
    command = [sys.executable, "-m", "tests.helpers.two_requests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.split()) == (-signal.SIGTERM, ["Requeue"])
