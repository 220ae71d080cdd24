"""Tests for the graceful shutdown of training."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from megatron_ssd.errors import Requeue
from megatron_ssd.training.shutdown import GracefulShutdown
from tests.helpers.paths import ROOT


@pytest.mark.parametrize(
    ("number", "request_type"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Requeue), (signal.SIGUSR1, Requeue)],
)
def test_a_signal_that_arrives_twice_at_once_is_one_request(
    number: signal.Signals, request_type: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_ssd.signals._SAME_REQUEST_SECONDS", 60.0)
    with GracefulShutdown() as shutdown:
        shutdown.agree(shutdown.code)
        assert shutdown.requested() is None
        for _ in range(2):
            signal.raise_signal(number)
            shutdown.agree(shutdown.code)
            assert shutdown.requested() is request_type


def test_a_request_to_one_rank_is_a_request_to_all() -> None:
    asked, other = GracefulShutdown(), GracefulShutdown()
    with asked:
        signal.raise_signal(signal.SIGTERM)
    for each in (asked, other):
        each.agree(max(asked.code, other.code))
        assert each.requested() is Requeue


def test_a_second_request_ends_the_process_immediately() -> None:
    command = [sys.executable, "-m", "tests.helpers.two_requests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.split()) == (-signal.SIGTERM, ["Requeue"])
