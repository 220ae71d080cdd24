"""Starts the processes in which lm-eval runs, one an engine, and waits for all of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection, wait
from typing import Any

from megatron_ssd.errors import UserError
from megatron_ssd.general_benchmarks.parts import HarnessSpec
from megatron_ssd.process import die_with_parent, this_package

_POLL_SECONDS = 30.0


def lm_eval_version() -> str:
    """The release that is installed. Raises ``UserError`` where none is."""
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        raise UserError(
            "package lm_eval",
            rule="is not installed, and general_benchmarks.tasks are its tasks",
            fix="pip install -e '.[lm-eval]', or leave general_benchmarks.tasks empty",
        ) from None


def run_harness(specs: Sequence[HarnessSpec], *, note: Callable[[], object]) -> None:
    """Run every process to its end. What they print, progress and warnings, goes to standard error.

    Args:
        specs: what each is asked, in the order of ``index``.
        note: called now and then while they run.

    Raises:
        UserError: one of them says what the user can mend, or died. The others are ended; whole parts are kept.
    """
    children = [_Child(spec) for spec in specs]
    try:
        waiting = {child.connection: child for child in children}
        while waiting:
            for connection in wait(list(waiting), timeout=_POLL_SECONDS):
                waiting.pop(connection).finish()  # type: ignore[call-overload]
            note()
    finally:
        for child in children:
            child.close()


class _Child:
    def __init__(self, spec: HarnessSpec) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "megatron_ssd.general_benchmarks.harness", str(theirs.fileno())],
                env=_environment(spec),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
                preexec_fn=die_with_parent,
                process_group=0,  # Ctrl-C is the parent's to handle
            )
        self.connection = Connection(ours.detach())
        with contextlib.suppress(ConnectionError):  # that it died shows when it is waited for
            self.connection.send(spec)

    def finish(self) -> None:
        """Take its last word. Raises ``UserError`` where it is a complaint or was never said."""
        try:
            complaint: dict[str, Any] | None = self.connection.recv()
        except (EOFError, OSError):
            status = self._process.wait()
            raise UserError(
                f"lm-eval's process with status {status}",
                rule="died; what it printed stands above",
                fix="finished tasks are kept: run the same command again, with a lower engine.max_num_seqs if memory "
                "ran out",
            ) from None
        if complaint is not None:
            raise UserError(**complaint)

    def close(self) -> None:
        """End it, and whatever it started."""
        self.connection.close()
        with contextlib.suppress(ProcessLookupError):  # nothing is left of its group
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _environment(spec: HarnessSpec) -> dict[str, str]:
    """As for every engine, but that data sets may be downloaded, and no library may run a model's programs."""
    environment = {**os.environ, **this_package(), **spec.engine.environment(spec.index)}
    if not set(spec.tasks) <= spec.config.data.keys() and "HF_HUB_OFFLINE" not in os.environ:
        del environment["HF_HUB_OFFLINE"]
    return {
        **environment,
        "HF_ALLOW_CODE_EVAL": "0",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
