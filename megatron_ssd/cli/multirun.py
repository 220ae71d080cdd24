"""Starts one run for each combination of values, as Hydra's basic sweeper forms them.

Each run is a process of its own, with the same script and options. ``launch/pipeline.py`` runs them one after the
other, ``launch/submit.py`` submits a chain of jobs for each.
"""

from __future__ import annotations

import itertools
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_ssd.cli.compose import ConfigSource, compose_values, sweep_values, text_override
from megatron_ssd.errors import require
from megatron_ssd.process import run_child

log = logging.getLogger(__name__)

_MULTIRUN = ("--multirun", "-m")


def points(overrides: Sequence[str], source: ConfigSource) -> list[list[str]]:
    """The overrides of each run, the last of several values changing fastest.

    Each run has its own ``run_dir``, a folder of the one that was given, named after the values. So the same command
    resumes all of them.

    Raises:
        ConfigError: no override has several values, or two runs would share a folder.
    """
    choices = [sweep_values(override) for override in overrides]
    swept = [values for values in choices if values is not None]
    require(bool(swept), "--multirun", rule="starts a run for each of several values, and no key has several",
            fix="write KEY=A,B for one of them, or leave it out")  # fmt: skip
    combinations = list(itertools.product(*swept))
    names = [_folder_name(combination) for combination in combinations]
    require(len(set(names)) == len(names), "--multirun", rule="two runs would have the same folder",
            fix="give each value once")  # fmt: skip
    runs = []
    for name, combination in zip(names, combinations, strict=True):
        chosen = iter(combination)
        run = [
            override if values is None else next(chosen) for override, values in zip(overrides, choices, strict=True)
        ]
        if not any(value.partition("=")[0].lstrip("+") == "run_dir" for value in combination):
            folder = Path(compose_values(run, source)["run_dir"])
            run.append(text_override("run_dir", str(folder / name)))
        runs.append(run)
    return runs


def run_points(overrides: Sequence[str], source: ConfigSource) -> None:
    """Start this script for each run, one after the other. Exits with the status of the first that fails."""
    runs = points(overrides, source)
    options = [argument for argument in sys.argv[1:] if argument not in overrides and argument not in _MULTIRUN]
    for number, run in enumerate(runs, start=1):
        changed = " ".join(override for override in run if override not in overrides)
        log.info("multirun: %d of %d: %s", number, len(runs), changed)
        status = run_child([sys.executable, sys.argv[0], *options, *run])
        if status != 0:
            sys.exit(status if status > 0 else 128 - status)


def _folder_name(combination: Sequence[str]) -> str:
    """For example ``optimizer.lr=1e-5,seed=3``; characters that are awkward in a path become underscores."""
    return ",".join(re.sub(r"[^A-Za-z0-9_.=+-]", "_", override.lstrip("+")) for override in combination)
