"""Tasks for worker processes, which import them by name."""

from __future__ import annotations

import os
import time
from pathlib import Path

from megatron_ssd.dataset.workers import CountSamples
from megatron_ssd.errors import UserError


def note_process(task: Path, count_samples: CountSamples) -> None:
    """Write the process id to ``task``, and count three samples."""
    count_samples(2)
    task.write_text(str(os.getpid()))
    count_samples(1)


def fail_on_b(task: Path, count_samples: CountSamples) -> None:
    """Fail on the task named b."""
    if task.name == "b":
        raise UserError("line 7", rule="is broken", fix="fix it")
    note_process(task, count_samples)


def fill_disk(task: Path, count_samples: CountSamples) -> None:
    """Fail as on a full disk."""
    raise OSError(28, "No space left on device", str(task))


def die(task: Path, count_samples: CountSamples) -> None:
    """End as if the kernel's out-of-memory killer had killed the process."""
    os.kill(os.getpid(), 9)


def write_for_ever(task: Path, count_samples: CountSamples) -> None:
    """Write to ``task`` for a minute, without counting samples."""
    for number in range(3000):
        task.write_text(f"{os.getpid()} {number}")
        time.sleep(0.02)
