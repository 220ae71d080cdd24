"""Tests what the launcher of ranks adds to torchrun: its arguments, signals at any time, and one line per failure."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed import run

from megatron_ssd.cli import ranks
from megatron_ssd.cli.entry import STOPPED
from megatron_ssd.cli.ranks import torchrun_arguments
from megatron_ssd.process import child_environment
from tests.helpers.waiting import is_alive, wait_until


def address(*arguments: str) -> str | None:
    parsed = run.parse_args(torchrun_arguments([*arguments, "--nproc-per-node=2", "train.py"]))
    found: str | None = parsed.local_addr
    return found


def test_one_node_does_not_depend_on_the_name_of_its_host() -> None:
    assert address("--standalone") == "127.0.0.1"
    assert address("--standalone", "--local-addr=::1") == "::1"
    assert address("--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=head:29500") is None


@pytest.mark.parametrize(
    ("exitcode", "passed_on", "status", "line"),
    [
        (75, signal.SIGUSR1, 75, None),
        (2, None, 2, None),
        (-signal.SIGKILL, signal.SIGTERM, 137, "was killed by SIGKILL"),
        (-signal.SIGSEGV, None, 139, "was killed by SIGSEGV"),
        (1, None, 1, "ended with the error above"),
    ],
)
def test_the_first_process_that_fails_gives_the_status_and_is_named_if_it_could_not_say_why(
    exitcode: int, passed_on: int | None, status: int, line: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "_passed_on", [passed_on] if passed_on else [])
    assert ranks.exit_status(exitcode) == status
    found = ranks.what_ended(3, exitcode)
    assert (found is None) if line is None else f" {line};" in str(found)
    assert found is None or found.startswith("error: rank 3 on ")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_process_that_a_passed_on_signal_kills_counts_as_stopped(
    number: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "_passed_on", [number])
    assert ranks.exit_status(-number) == status


RANK = """
import os, pathlib, sys, time
from megatron_ssd.cli.entry import run_guarded
from megatron_ssd.process import die_with_parent_if_asked
die_with_parent_if_asked()
folder = pathlib.Path(sys.argv[1])
def load():
    (folder / os.environ["RANK"]).write_text(str(os.getpid()))
    time.sleep(60)
{main}
"""


@pytest.mark.parametrize(
    ("main", "number", "to_rank", "status", "said"),
    [
        ("run_guarded(load)", signal.SIGUSR1, None, 75, "stopped before the end"),
        ("run_guarded(load)", signal.SIGTERM, None, 75, "stopped before the end"),
        ("load()", signal.SIGUSR1, None, 75, "stopped before the end"),  # a rank has no handlers yet
        ("run_guarded(load)", signal.SIGINT, None, 130, "interrupted"),
        ("run_guarded(load)", signal.SIGKILL, 1, 137, "error: rank 1 on "),
    ],
)
def test_ranks_that_are_still_starting_end_with_the_right_status(
    tmp_path: Path, main: str, number: int, to_rank: int | None, status: int, said: str
) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK.format(main=main))
    process = start(script, tmp_path)
    wait_until(lambda: all((tmp_path / rank).exists() and (tmp_path / rank).read_text() for rank in "01"))
    time.sleep(0.2)  # the launcher waits for its processes now
    target = process.pid if to_rank is None else int((tmp_path / str(to_rank)).read_text())
    subprocess.run(["kill", f"-{number}", str(target)], check=True)
    _, error = process.communicate(timeout=90)
    assert process.returncode == status, error
    assert error.startswith(said)
    assert len(error.splitlines()) == 1, error


def test_a_launcher_that_is_killed_leaves_no_ranks(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK.format(main="load()"))
    process = start(script, tmp_path)
    files = [tmp_path / rank for rank in "01"]
    wait_until(lambda: all(file.exists() and file.read_text() for file in files))
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: not any(is_alive(int(file.read_text())) for file in files))


@pytest.mark.usefixtures("fresh_interpreters")
def test_a_signal_before_any_process_is_started_asks_for_a_new_start(tmp_path: Path) -> None:
    process = start(tmp_path / "absent.py", tmp_path)
    wait_until(lambda: handles(process.pid, signal.SIGUSR1))
    process.send_signal(signal.SIGUSR1)
    _, error = process.communicate(timeout=90)
    assert (process.returncode, error) == (75, f"{STOPPED[75]}\n")


def start(script: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "megatron_ssd.cli.ranks", "--standalone", "--nproc-per-node=2", script, folder]
    return subprocess.Popen(command, env=child_environment(), stderr=subprocess.PIPE, text=True)


def handles(pid: int, number: int) -> bool:
    """Whether the process catches the signal."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    caught = next(line for line in lines if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
