"""SLURM's commands: ``sbatch``, ``squeue`` and ``scancel``."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from megatron_ssd.errors import UserError
from megatron_ssd.process import child_environment

_ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
_FIELDS = "%F|%T|%r|%L"  # id that sbatch returned, state, reason, time left


@dataclass(frozen=True)
class Job:
    """A job, or a task of a job array, as ``squeue`` describes it.

    Args:
        job: the id that ``sbatch`` returned; all tasks of an array share it.
        state: SLURM's word, such as ``RUNNING``.
        reason: why it is waiting, such as ``Dependency``.
        time_left: until its time limit, as SLURM writes it.
    """

    job: str
    state: str
    reason: str
    time_left: str

    @property
    def is_live(self) -> bool:
        """Whether it runs, or will run."""
        return self.state not in _ENDED


def submit(name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Submit with ``sbatch`` and return the id of the job.

    Args:
        name: of the job, for the error.
        arguments: options, the job script and its arguments.
        environment: variables to set besides those of this process, without those of a launcher or another job.

    Raises:
        UserError: SLURM refuses the job, or is not installed.
    """
    output = _run(["sbatch", "--parsable", *arguments], environment, what=f"the job of {name}")
    return output.strip().partition(";")[0]  # ID;CLUSTER


def list_jobs(ids: Iterable[str]) -> list[Job]:
    """The jobs and array tasks with these ids that SLURM still knows: those that have not ended, and recent ones."""
    wanted = set(ids)
    if not wanted:
        return []
    lines = _run(["squeue", "--noheader", "--me", "--array", "--states=all", f"--format={_FIELDS}"], {}).splitlines()
    jobs = [Job(*line.strip().split("|")) for line in lines]
    return [job for job in jobs if job.job in wanted]


def cancel(ids: Iterable[str]) -> None:
    """Cancel jobs; those that have ended are no error."""
    _run(["scancel", *ids], {})


def _run(command: Sequence[str], environment: Mapping[str, str], *, what: str = "") -> str:
    if shutil.which(command[0]) is None:
        raise UserError(f"command {command[0]}", rule="there is no SLURM on this machine",
                        fix="submit from a login node; launch/pipeline.py runs everything here")  # fmt: skip
    # Without the variables of a job or launcher that the shell may be in: jobs would inherit them.
    done = subprocess.run(
        command, env={**child_environment(), **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        reason = " ".join(lines).replace(f"{command[0]}: error: ", "").rstrip(".")
        raise UserError(what or f"command {command[0]}", rule=f"{command[0]} failed: {reason}",
                        fix="the keys of cluster become options of sbatch, which --dry-run shows")  # fmt: skip
    return done.stdout
