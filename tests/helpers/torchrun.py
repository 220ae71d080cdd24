"""Starts a worker module of this folder in several processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import ROOT


def run_workers(module: str, root: Path, *, world_size: int, seconds: int) -> None:
    """Run ``python -m tests.distributed.MODULE ROOT`` under torchrun; fails the test with the workers' own words."""
    # timeout(1) ends torchrun so that it ends its workers; Python's own time-out would leave them behind.
    command = ["timeout", str(seconds), sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc-per-node={world_size}", "-m", f"tests.distributed.{module}", str(root)]  # fmt: skip
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
