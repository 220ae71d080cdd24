"""Tests child processes: their messages, errors, unexpected exits, and that they end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from megatron_ssd.errors import UserError
from megatron_ssd.process import ChildDeathError, ChildProcess
from tests.helpers.paths import ROOT

MODULE = "tests.helpers.echo_process"
PARENT = f"""
import os, signal
from megatron_ssd.process import ChildProcess
child = ChildProcess({MODULE!r})
child.send("ready?")
child.receive()
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def child() -> Iterator[ChildProcess]:
    with closing(ChildProcess(MODULE, environment={"ECHO_PREFIX": "heard "})) as child:
        yield child


def test_messages_go_in_both_directions_and_exceptions_are_raised_in_the_parent(child: ChildProcess) -> None:
    child.send("a")
    assert child.receive() == "heard a"
    child.send(UserError("b", rule="is broken", fix="fix it"))
    with pytest.raises(UserError, match="b: is broken; fix it"):
        child.receive()
    child.send("c")
    assert child.receive() == "heard c"


def test_an_unexpected_exit_is_reported_with_its_status_after_all_messages(child: ChildProcess) -> None:
    child.send("a")
    assert child.receive() == "heard a"
    os.kill(child.pid, signal.SIGKILL)
    child.send("b")
    with pytest.raises(ChildDeathError) as caught:
        child.receive()
    assert caught.value.status == -signal.SIGKILL


def test_closing_ends_the_child_and_may_be_repeated(child: ChildProcess) -> None:
    child.send("a")
    child.receive()
    child.close()
    assert not psutil.pid_exists(child.pid)
    child.close()


def test_a_child_dies_with_its_killed_parent() -> None:
    parent = subprocess.run([sys.executable, "-c", PARENT], cwd=ROOT, capture_output=True, text=True, check=False)
    stat = Path(f"/proc/{int(parent.stdout)}/stat")
    for _ in range(200):
        if not stat.exists() or stat.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the child outlived its parent")
