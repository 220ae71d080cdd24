"""A SLURM on this machine for tests: its daemons, with all their files in one folder and on ports of their own.

Debian's packages slurm-wlm and munge are enough (``tools/system_packages.sh cluster``), without systemd. Several slurmd
run on one host under the names node1, node2 and so on. Their GPUs are device files that nothing opens.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.helpers.paths import ROOT

_PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare")
_SECONDS = 300  # only a hang takes as long
_CPUS, _GPUS = 4, 2  # per node; the job scripts ask for all of them


def why_not() -> str | None:
    """Why SLURM cannot run here; None if it can."""
    if os.geteuid() != 0:
        return "the daemons of SLURM need root"
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (tools/system_packages.sh cluster)"
    mounted = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return None if mounted.returncode == 0 else "this machine allows no mounts"


class Slurm:
    """The running SLURM, and jobs in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "OMP_WAIT_POLICY": "passive"}

    def submit(self, script: str, *arguments: str, options: tuple[str, ...] = (), cwd: Path = ROOT) -> str:
        """Submit a script of ``launch/slurm``; returns the id of its job. Task 1 of an array is the job ``ID_1``."""
        name = "%A_%a" if any(option.startswith("--array") for option in options) else "%j"
        return self._run("sbatch", "--parsable", f"--output={self._folder}/{name}.log", f"--gpus-per-node={_GPUS}",
                         *options, str(ROOT / "launch" / "slurm" / script), *arguments, cwd=cwd).strip()  # fmt: skip

    def log(self, job: str) -> str:
        """What the job has printed."""
        path = self._folder / f"{job}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def facts(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` says."""
        return dict(re.findall(r"(\w+)=(\S*)", self._run("scontrol", "show", "job", job)))

    def signal(self, job: str, name: str) -> None:
        """Send a signal to the processes of the job's step, as SLURM does before a time limit."""
        self._run("scancel", f"--signal={name}", job)

    def wait(self, job: str, condition: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """Wait until ``condition`` holds for the facts of the job, and return them. A requeued job is released soon.

        SLURM itself waits two minutes before it starts a requeued job again.
        """
        deadline, released = time.monotonic() + _SECONDS, "0"
        while not condition(facts := self.facts(job)):
            assert time.monotonic() < deadline, f"{facts}\n{self.log(job)[-3000:]}"
            if facts["JobState"] == "PENDING" and facts["Restarts"] != released:
                released = facts["Restarts"]
                self._run("scontrol", "update", f"jobid={job}", "StartTime=now+3")
            time.sleep(0.05)
        return facts

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command that uses this SLURM, in the root of the checkout."""
        environment = {**self._environment, **variables}
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)

    def _run(self, *command: str, cwd: Path = ROOT) -> str:
        done = subprocess.run(command, env=self._environment, cwd=cwd, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def start(self, num_nodes: int) -> None:
        """Start the daemons and wait for the nodes."""
        ports = _free_ports(num_nodes + 1)
        self._write_configuration(ports)
        munge = self._folder / "munge"
        munge.mkdir()
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o400)
        self._run("munged", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket",
                  f"--pid-file={munge}/munged.pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed")  # fmt: skip
        self._run("slurmctld", "-c", "-i")
        # Torchrun resolves the names of the nodes. Only slurmd and its jobs see this file as /etc/hosts.
        names = [f"node{number}" for number in range(1, num_nodes + 1)]
        hosts = Path("/etc/hosts").read_text(encoding="utf-8") + "".join(f"127.0.0.1 {name}\n" for name in names)
        (self._folder / "hosts").write_text(hosts)
        for name in names:
            (self._folder / "spool" / name).mkdir(parents=True)
            self._run("unshare", "--mount", "bash", "-c", 'mount --bind "$1" /etc/hosts && exec slurmd -N "$2"', "-",
                      str(self._folder / "hosts"), name)  # fmt: skip
        deadline = time.monotonic() + _SECONDS
        while len(self._run("sinfo", "--noheader", "--Node", "--states=idle").splitlines()) < num_nodes:
            assert time.monotonic() < deadline, (self._folder / "slurmctld.log").read_text()[-3000:]
            time.sleep(0.1)

    def stop(self) -> None:
        """End the jobs and the daemons."""
        with contextlib.suppress(AssertionError):  # the controller was never started
            self._run("scancel", "--full", "--signal=KILL", "--user=root")
        for file in (
            *self._folder.glob("slurmd-*.pid"),
            self._folder / "slurmctld.pid",
            self._folder / "munge/munged.pid",
        ):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGTERM)

    def _write_configuration(self, ports: list[int]) -> None:
        folder, host = self._folder, socket.gethostname()
        for name in ("state", "dev"):
            (folder / name).mkdir(parents=True)
        devices = [folder / "dev" / f"gpu{number}" for number in range(_GPUS)]
        for device in devices:
            device.touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/dev/gpu[0-{_GPUS - 1}]\n")
        (folder / "cgroup.conf").write_text("CgroupPlugin=autodetect\n")
        nodes = "".join(
            f"NodeName=node{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={_CPUS} RealMemory=2000 "
            f"Gres=gpu:{_GPUS}\n"
            for number, port in enumerate(ports[1:], 1)
        )
        (folder / "slurm.conf").write_text(
            f"ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={ports[0]}\n"
            f"SlurmUser=root\nSlurmdUser=root\nAuthType=auth/munge\nAuthInfo=socket={folder}/munge/socket\n"
            f"StateSaveLocation={folder}/state\nSlurmdSpoolDir={folder}/spool/%n\n"
            f"SlurmctldPidFile={folder}/slurmctld.pid\nSlurmdPidFile={folder}/slurmd-%n.pid\n"
            f"SlurmctldLogFile={folder}/slurmctld.log\nSlurmdLogFile={folder}/slurmd-%n.log\n"
            "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/none\n"
            "AccountingStorageType=accounting_storage/none\nMpiDefault=none\nReturnToService=2\n"
            "SelectType=select/cons_tres\nSelectTypeParameters=CR_CPU\nSlurmdParameters=config_overrides\n"
            f"SchedulerParameters=sched_interval=2,bf_interval=2\nGresTypes=gpu\n{nodes}"
            "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"
        )


@contextlib.contextmanager
def slurm(folder: Path, *, num_nodes: int = 2) -> Iterator[Slurm]:
    """A SLURM with its files in ``folder``, which must be empty."""
    started = Slurm(folder)
    try:
        started.start(num_nodes)
        yield started
    finally:
        started.stop()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
