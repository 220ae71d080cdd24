"""Ends a job that was requeued again and again without progress.

A job that a signal stops is requeued. If it never gets further, for example because loading the model takes longer than
the time limit, it would be requeued for ever. So each start records how far its stage is, in the run folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.cluster.progress import stage_progress
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError

FOLDER = "slurm"  # in the run folder: logs, and what was submitted
MOST_STARTS = 5  # at the same progress; a few may be preemptions


def check_requeues(config: RunConfig, stage: str, environment: Mapping[str, str]) -> None:
    """Record a start of ``stage`` in a SLURM job, which ``environment`` tells of; without one nothing is done.

    Raises:
        UserError: this job has been started ``MOST_STARTS`` times without progress. The error's status is not requeued.
    """
    job, restarts = environment.get("SLURM_JOB_ID"), environment.get("SLURM_RESTART_COUNT")
    if job is None or environment.get("RANK", "0") != "0":
        return
    folder = Path(config.run_dir) / FOLDER
    path = folder / f"starts-{job}.json"
    progress = stage_progress(config, stage)
    now = 0 if progress is None else progress.kept
    starts = json.loads(path.read_text(encoding="utf-8")) if restarts and path.is_file() else []
    without = [*starts, now][-MOST_STARTS - 1 :]
    if len(without) > MOST_STARTS and len(set(without)) == 1:
        raise UserError(
            f"job {job}",
            rule=f"was started {MOST_STARTS} times without progress"
            + ("" if progress is None else f" beyond {progress.kept} {progress.unit}"),
            fix="see its log for why, for example a time limit that is too short (cluster.times); then submit it again",
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps([*starts, now]))
