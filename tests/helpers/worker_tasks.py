"""What workers are given in tests; they import it by name."""

from __future__ import annotations

import os
import time
from pathlib import Path

from megatron_ssd.dataset.workers import CountRows
from megatron_ssd.errors import UserError


def note_process(task: Path, count_rows: CountRows) -> None:
    """Leave this process's number at ``task``; three rows."""
    count_rows(2)
    task.write_text(str(os.getpid()))
    count_rows(1)


def fail_on_b(task: Path, count_rows: CountRows) -> None:
    """Fail on the task called b; the others are quick."""
    if task.name == "b":
        raise UserError("row 7", rule="is broken", fix="mend it")
    note_process(task, count_rows)


def fill_disk(task: Path, count_rows: CountRows) -> None:
    """What a full disk does."""
    raise OSError(28, "No space left on device", str(task))


def die(task: Path, count_rows: CountRows) -> None:
    """What the kernel does where memory runs out."""
    os.kill(os.getpid(), 9)


def write_for_ever(task: Path, count_rows: CountRows) -> None:
    """Change ``task`` again and again, without a word to the parent."""
    for number in range(3000):
        task.write_text(f"{os.getpid()} {number}")
        time.sleep(0.02)
