"""Starts worker modules of tests/distributed in several processes.

torchrun --nproc-per-node=2 -m tests.helpers.torchrun ROOT loss_worker memory_worker
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import joined_processes
from tests.helpers.paths import ROOT
from tests.helpers.training_run import CPU, EXACT

_SECONDS = 800  # only a hang takes as long


def run_workers(names: Sequence[str], root: Path, *, world_size: int) -> None:
    """Run ``run_cases(ROOT/NAME)`` of each worker module under torchrun; fails with the error messages of workers."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}",
               "-m", "tests.helpers.torchrun", str(root), *names]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as torchrun:
        try:
            _, errors = torchrun.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            torchrun.terminate()  # it then ends its workers, which a killed one would leave running
            raise
    assert torchrun.returncode == 0, errors[-4000:]


def main(root: Path, names: Sequence[str]) -> None:
    """Run the cases of these workers in the processes that torchrun started."""
    workers = {name: importlib.import_module(f"tests.distributed.{name}") for name in names}
    with joined_processes(prepare_device(CPU, EXACT)):
        for name, worker in workers.items():
            worker.run_cases(root / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
