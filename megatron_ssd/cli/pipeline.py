"""The whole loop, stage after stage, each in a process of its own.

A stage that is up to date is not even started. A stage that stops ends the pipeline with that stage's status; the same
command goes on from there. Stages die with the pipeline, so that a killed one leaves nobody writing in its place.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_ssd.artifacts.hashing import hash_json
from megatron_ssd.cli.compose import CONFIG_DIR, compose_config
from megatron_ssd.cli.entry import parser, run_guarded, start_logging
from megatron_ssd.cli.preflight import check_machine
from megatron_ssd.cli.process import DIE_WITH_PARENT_VARIABLE
from megatron_ssd.cli.stages import STAGES, StageScript
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.errors import ConfigError

log = logging.getLogger(__name__)

ROOT = CONFIG_DIR.parent


@dataclass(frozen=True)
class Step:
    """One stage to run: its script, the overrides it gets, and the configuration that these compose to."""

    script: StageScript
    overrides: tuple[str, ...]
    config: RunConfig

    @property
    def command(self) -> list[str]:
        """The command line; training goes through torchrun with one process a device of the layout."""
        script = [str(ROOT / self.script.path), *self.overrides]
        if not self.script.torchrun:
            return [sys.executable, *script]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        return [*launcher, f"--nproc-per-node={self.config.parallel.world_size}", *script]


def main() -> None:
    """Entry of ``launch/pipeline.py``."""
    arguments = parser("Run every stage from problems to report; stages that are up to date are skipped.").parse_args()
    run_guarded(lambda: run(arguments), traceback=arguments.traceback)


def run(arguments: argparse.Namespace) -> None:
    """Plan and run. Raises ``UserError`` before the first stage where something that a later one needs is missing."""
    start_logging()
    overrides = list(arguments.overrides)
    config = compose_config(overrides, arguments.config_dir)
    for section in ("model", "problems", "benchmark", "sampling"):
        needed(getattr(config, section), section, fix=f"choose one: {section}=NAME, or +experiment=demo")
    check_machine(config)
    started = time.monotonic()
    base_steps = _base_steps(config, overrides)
    for number, step in enumerate(base_steps, start=1):
        _run_step(step, f"base {number}/{len(base_steps)}")
    if base_steps:
        overrides.append(f"model.path={base_steps[-1].config.run_dir}/export")
    overrides.append(f"run_dir={config.run_dir}")
    config = compose_config(overrides, arguments.config_dir)
    loop = [Step(script, tuple(overrides), config) for script in STAGES]
    for number, step in enumerate(loop, start=1):
        _run_step(step, f"{number}/{len(loop)}")
    log.info("pipeline: done in %.0f s", time.monotonic() - started)
