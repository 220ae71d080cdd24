"""Fixes the time that chat templates see, once per run.

Some templates put the date into the prompt (``strftime_now``). With the time of each process, workers of one run would
publish different prompts, and so would a run that resumes on another day or is evaluated later. The first process that
renders such a template records its time in the folder of the run, and all others read it.
"""

from __future__ import annotations

import functools
import os
import uuid
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from megatron_ssd.artifacts.atomic import folder_errors
from megatron_ssd.errors import UserError

TIME_FILE = "prompt_time.txt"  # ISO 8601 with the offset from UTC, one line


class RunClock:
    """The time of the run in ``run_dir``. Nothing is read or written before it is asked for."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / TIME_FILE

    def strftime(self, pattern: str) -> str:
        """The time in the form of ``pattern``, as ``datetime.strftime`` gives it; templates call it ``strftime_now``.

        Raises:
            UserError: the record cannot be read or written.
        """
        return self._time.strftime(pattern)

    @property
    def facts(self) -> dict[str, str]:
        """For manifests: ``prompt_time`` if a template of this run has asked for the time, otherwise nothing."""
        return {"prompt_time": self._time.isoformat()} if self._path.is_file() else {}

    @functools.cached_property
    def _time(self) -> datetime:
        with folder_errors("run_dir", self._path.parent):
            if not self._path.is_file():
                self._record(datetime.now().astimezone())
            text = self._path.read_text(encoding="utf-8")
        try:
            return datetime.fromisoformat(text.strip())
        except ValueError:
            raise UserError(
                f"file {self._path}",
                rule="is not a time in ISO 8601",
                fix="write the prompt_time of the run's manifests into it, or use another run_dir",
            ) from None

    def _record(self, now: datetime) -> None:
        """Record ``now``, unless another process was first. The file appears complete, once."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._path.with_name(f".{TIME_FILE}.{uuid.uuid4().hex}")
        unfinished.write_text(now.isoformat(timespec="seconds") + "\n", encoding="utf-8")
        with suppress(FileExistsError):
            os.link(unfinished, self._path)  # a rename would replace the record of another process
        unfinished.unlink()
