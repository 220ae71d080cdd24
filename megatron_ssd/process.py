"""Starts child processes that end when their parent ends.

A killed parent must not leave a child that still writes files, because a restarted parent will write the same ones.
On Linux a process can ask for a signal when its parent dies. The request survives ``exec`` but not ``fork``, so a
grandchild (a worker of torchrun) has to ask for itself; it does so if an environment variable asks for that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import megatron_ssd
from megatron_ssd.errors import Requeue
from megatron_ssd.signals import OF_SCHEDULERS

# Variables with which a launcher tells a process its rank: torchrun (PET_ are its own options), SLURM and MPI.
_OF_LAUNCHERS = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
_PREFIXES_OF_LAUNCHERS = ("TORCHELASTIC_", "PET_", "SLURM_", "OMPI_", "PMI_", "PMIX_", "MPI_", "MV2_")
_OF_USERS = ("SLURM_CONF", "SLURM_CLUSTERS")  # they say which SLURM the commands use
DIE_WITH_PARENT = "MEGATRON_SSD_DIE_WITH_PARENT"  # see ``die_with_parent_if_asked``
PARENT_REPORTS = "MEGATRON_SSD_PARENT_REPORTS"  # set if the parent says that a signal has stopped the run
REPORT_FOLLOWS = "MEGATRON_SSD_REPORT_FOLLOWS"  # set for the stages of a pipeline that ends with the report's table
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies. Does nothing on systems other than Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with_parent_if_asked() -> None:
    """``die_with_parent`` in a process that the pipeline or the launcher of ranks started, directly or not."""
    if os.environ.get(DIE_WITH_PARENT):
        die_with_parent()


def child_environment() -> dict[str, str]:
    """The environment for a child process that is not a rank of the launcher that started this process.

    The child imports this package, installed or not. It does not import from its working directory, where a folder
    ``vllm/`` would hide the installed package; so empty entries of PYTHONPATH, which mean that directory, are left out.
    """
    root = str(Path(megatron_ssd.__file__).parents[1])
    path = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    kept = {name: value for name, value in os.environ.items() if not _is_of_launcher(name)}
    return {**kept, "PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}


def forget_launcher() -> None:
    """Remove the launcher's variables from the environment, so that this process does not act as a rank."""
    for name in filter(_is_of_launcher, list(os.environ)):
        del os.environ[name]


def _is_of_launcher(name: str) -> bool:
    return name in _OF_LAUNCHERS or (name.startswith(_PREFIXES_OF_LAUNCHERS) and name not in _OF_USERS)


def report_follows() -> bool:
    """Whether the pipeline that started this process prints the report's table at its end."""
    return bool(os.environ.get(REPORT_FOLLOWS))


def run_child(command: Sequence[str], *, report_follows: bool = False) -> int:
    """Run ``command`` to its end on this terminal and return its exit status.

    Ctrl-C reaches the child as well, which is in the same process group. A scheduler's signal, which raises ``Requeue``
    here, may not, and is passed on. ``KeyboardInterrupt`` is raised here after the child has saved its work and ended.
    """
    environment = {
        **child_environment(),
        DIE_WITH_PARENT: "1",
        PARENT_REPORTS: "1",
        REPORT_FOLLOWS: "1" if report_follows else "",
    }
    with subprocess.Popen(command, env=environment, preexec_fn=die_with_parent) as child:
        try:
            return child.wait()
        except KeyboardInterrupt as request:
            if isinstance(request, Requeue):
                child.send_signal(signal.SIGTERM)
            child.wait()
            raise


class ChildDeathError(Exception):
    """A child process has ended, with exit status ``status``; negative for a signal."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the child process ended with status {status}")
        self.status = status


class ChildProcess:
    """A module of this package that runs in a new interpreter, with a connection to it in both directions.

    ``multiprocessing`` does not fit: a forked child of a process with threads (progress bar, tokenizer) may hang, and
    a spawned one cannot be given its own environment, output and process group.

    The kernel kills the child when the *thread* that started it ends, so start it in the main thread.

    Args:
        module: run as ``python -m``; it finds its end of the connection with ``connection_to_parent``.
        environment: variables to set besides those of this process.
        stdout: as for ``subprocess.Popen``.
        stderr: as for ``subprocess.Popen``.
    """

    def __init__(
        self,
        module: str,
        *,
        environment: Mapping[str, str] | None = None,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> None:
        self.connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", module, str(theirs.fileno())],  # a killed child's last lines are not lost
                env={**child_environment(), **(environment or {})},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                preexec_fn=_prepare_child,
                process_group=0,  # Ctrl-C is for the parent to handle
            )
        self.pid = self._process.pid

    def send(self, message: Any) -> None:
        """Send a picklable message. If the child has ended, the next ``receive`` reports it."""
        with contextlib.suppress(ConnectionError):
            self.connection.send(message)

    def receive(self) -> Any:
        """The next message from the child; waits for it. An exception that the child sent is raised.

        Raises:
            ChildDeathError: the child has ended, and all its messages were received.
        """
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            raise ChildDeathError(self._process.wait()) from None
        try:
            if isinstance(message, Exception):
                raise message
            return message
        finally:
            del message  # otherwise the exception and its traceback refer to each other

    def close(self) -> None:
        """Kill the child and every process it started. May be called again."""
        self.connection.close()
        with contextlib.suppress(ProcessLookupError):  # nothing is left of its group
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


def _prepare_child() -> None:
    """The parent decides when a child ends. SLURM sends its signals to every process of a job's step."""
    die_with_parent()
    for number in OF_SCHEDULERS:
        signal.signal(number, signal.SIG_IGN)


def connection_to_parent() -> Connection:
    """In a module that ``ChildProcess`` runs: the connection to the parent. It closes when the parent ends."""
    return Connection(int(sys.argv[1]))
