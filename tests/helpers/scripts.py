"""Runs the project's scripts as a user would."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.helpers.paths import ROOT


def run_script(
    script: str, *arguments: str, path: str | None = None, timeout: int = 600
) -> subprocess.CompletedProcess[str]:
    """Run a script in its own process to its end; one that runs for more than ``timeout`` seconds is an error.

    ``path`` replaces the environment variable PATH.
    """
    environment = {**os.environ, **({"PATH": path} if path is not None else {})}
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        capture_output=True, text=True, timeout=timeout, check=False, env=environment,
    )  # fmt: skip
