"""The files of workers in a folder that they fill together, and who of them is alive.

``worker-0-of-2.jsonl`` holds the rows of worker 0 of 2, ``worker-0-of-2.spans.json`` when it was at work. A worker
keeps its file of rows locked (flock) while it lives, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
from collections.abc import Iterator
from pathlib import Path

from megatron_ssd.config.generation import WorkerConfig
from megatron_ssd.errors import UserError

_NAME = re.compile(r"worker-(\d+)-of-(\d+)\.jsonl")


def row_file(folder: Path, worker: WorkerConfig) -> Path:
    """Where ``worker`` appends its rows."""
    return folder / f"worker-{worker.rank or 0}-of-{worker.world or 1}.jsonl"


def span_file(folder: Path, worker: WorkerConfig) -> Path:
    """Where ``worker`` notes when it was at work."""
    return row_file(folder, worker).with_suffix(".spans.json")


def row_files(folder: Path) -> list[Path]:
    """The rows of every worker, living or dead, of any world."""
    return sorted(path for path in folder.glob("worker-*.jsonl") if _NAME.fullmatch(path.name))


def span_files(folder: Path) -> list[Path]:
    """The times of every worker."""
    return sorted(folder.glob("worker-*.spans.json"))


def is_work(path: Path) -> bool:
    """Whether a file of the folder is more than a worker's note of when it was at work."""
    return not path.match("worker-*.spans.json") and not path.match(".worker-*.tmp")


def name(path: Path) -> str:
    """Whose file it is, for example ``worker-0-of-2``."""
    return path.name.partition(".")[0]


def remove_rows(folder: Path) -> None:
    """Remove the rows of every worker, and what a kill in the middle of a note left."""
    for path in [*row_files(folder), *folder.glob(".worker-*.tmp")]:
        path.unlink()


def living(folder: Path) -> list[Path]:
    """Files of the workers that are alive. Ask in the stage's turn, so that none is just starting."""
    return [path for path in row_files(folder) if _is_locked(path)]


@contextlib.contextmanager
def seat(folder: Path, worker: WorkerConfig) -> Iterator[None]:
    """Be ``worker`` in ``folder``, for as long as the context lasts. Enter in the stage's turn.

    Raises:
        UserError: that worker is alive already, or one of another world is.
    """
    path = row_file(folder, worker)
    for other in living(folder):
        if other == path:
            raise UserError(
                f"worker.rank = {worker.rank or 0}",
                rule=f"{worker.label} is at work already in {folder}",
                fix="wait for it or stop it, or start workers with a worker.rank each",
            )
        rank, world = _numbers(other)
        if world != (worker.world or 1):
            raise UserError(
                f"worker.world = {worker.world or 1}",
                rule=f"worker {rank} of {world} is at work in {folder}, and shares of two worlds overlap",
                fix=f"set worker.world={world}, or wait for the others or stop them",
            )
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _numbers(path: Path) -> tuple[int, int]:
    found = _NAME.fullmatch(path.name)
    assert found is not None
    return int(found[1]), int(found[2])
