"""Tests child processes: their messages, errors, unexpected exits, and that they end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from megatron_ssd.errors import UserError
from megatron_ssd.process import ChildDeathError, ChildProcess, run_child
from megatron_ssd.signals import OF_SCHEDULERS
from tests.helpers.paths import ROOT
from tests.helpers.waiting import is_alive, wait_until

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


def test_a_child_leaves_the_signals_of_schedulers_to_its_parent(child: ChildProcess) -> None:
    for number in OF_SCHEDULERS:
        os.kill(child.pid, number)
    child.send("a")
    assert child.receive() == "heard a"


def test_closing_ends_the_child_and_may_be_repeated(child: ChildProcess) -> None:
    child.send("a")
    child.receive()
    child.close()
    assert not psutil.pid_exists(child.pid)
    child.close()


def test_a_child_dies_with_its_killed_parent() -> None:
    parent = subprocess.run([sys.executable, "-c", PARENT], cwd=ROOT, capture_output=True, text=True, check=False)
    wait_until(lambda: not is_alive(int(parent.stdout)))


def test_children_do_not_import_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("psutil", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(tmp_path / "mine"), ""]))  # empty: the working directory
    assert run_child([sys.executable, "-c", "import psutil, sys; assert sys.argv == ['-c']"]) == 0
    assert run_child([sys.executable, "-c", f"import sys; sys.exit({str(tmp_path / 'mine')!r} not in sys.path)"]) == 0
    with closing(ChildProcess(MODULE)) as child:
        child.send("a")
        assert child.receive() == "a"


def test_children_are_not_ranks_of_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    of_launchers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID",
                    "PET_NNODES", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")  # fmt: skip
    for name in of_launchers:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    code = f"import os; assert os.environ.keys() & {{'WANDB_PROJECT', *{of_launchers!r}}} == {{'WANDB_PROJECT'}}"
    assert run_child([sys.executable, "-c", code]) == 0
