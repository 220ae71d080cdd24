"""Tests how tasks are distributed over processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from megatron_ssd.dataset.workers import run_tasks
from megatron_ssd.errors import UserError
from tests.helpers import worker_tasks
from tests.helpers.paths import ROOT
from tests.helpers.waiting import wait_until

PARENT = """
import sys
from pathlib import Path
from megatron_ssd.dataset.workers import run_tasks
from tests.helpers.worker_tasks import write_for_ever
list(run_tasks(write_for_ever, [Path(name) for name in sys.argv[1:]], num_workers=2, count_samples=print))
"""


@pytest.mark.parametrize(("num_workers", "processes"), [(1, 1), (2, 2), (9, 5)])
def test_every_task_is_done_once(tmp_path: Path, num_workers: int, processes: int) -> None:
    tasks, counts = [tmp_path / name for name in "abcde"], []
    done = list(run_tasks(worker_tasks.note_process, tasks, num_workers=num_workers, count_samples=counts.append))
    assert sorted(done) == tasks
    assert sum(counts) == 3 * len(tasks)
    numbers = {int(task.read_text()) for task in tasks}
    assert len(numbers) <= processes
    assert (os.getpid() in numbers) == (num_workers == 1)
    assert not any(map(psutil.pid_exists, numbers - {os.getpid()}))


@pytest.mark.usefixtures("fresh_interpreters")
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_task_that_fails_stops_the_rest_with_its_own_error(tmp_path: Path, num_workers: int) -> None:
    tasks, done = [tmp_path / name for name in "abcdefgh"], []
    before = psutil.Process().children()
    with pytest.raises(UserError, match="line 7: is broken; fix it"):
        done.extend(run_tasks(worker_tasks.fail_on_b, tasks, num_workers=num_workers, count_samples=lambda _: None))
    assert not (tmp_path / "b").exists()
    assert psutil.Process().children() == before


def test_the_error_of_a_full_disk_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        list(run_tasks(worker_tasks.fill_disk, [tmp_path / "a", tmp_path / "b"], num_workers=2, count_samples=print))
    assert caught.value.errno == 28
    assert caught.value.filename in (str(tmp_path / "a"), str(tmp_path / "b"))


def test_a_killed_worker_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"worker process with status -9: died.*lower preprocess.num_workers"):
        list(run_tasks(worker_tasks.die, [tmp_path / "a", tmp_path / "b"], num_workers=2, count_samples=print))


@pytest.mark.usefixtures("fresh_interpreters")
def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    tasks = [tmp_path / "a", tmp_path / "b"]
    with subprocess.Popen([sys.executable, "-c", PARENT, *map(str, tasks)], cwd=ROOT) as parent:
        wait_until(lambda: all(task.exists() and task.read_text() for task in tasks))
        workers = psutil.Process(parent.pid).children()
        parent.kill()
    assert len(workers) == 2
    psutil.wait_procs(workers, timeout=60)
    assert not [worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]
