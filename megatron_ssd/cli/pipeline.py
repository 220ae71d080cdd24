"""Runs all stages in order, each in a process of its own.

A stage that is up to date is not started. If a stage fails, the pipeline ends with its exit status; finished stages are
kept, and the next start resumes after them. Stages die with the pipeline, so a killed pipeline leaves no writers.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_ssd.artifacts.hub import locate_model
from megatron_ssd.cli.compose import CONFIG_DIR, ConfigSource, base_run, compose_config, compose_values, text_override
from megatron_ssd.cli.entry import EXIT_USER_ERROR, config_source, parser, run_command
from megatron_ssd.cli.stages import BASE, LOOP, Script, default_layout, scripts_until
from megatron_ssd.cli.terminal import EXIT_READER_LEFT
from megatron_ssd.config.run import BaseConfig, RunConfig, needed
from megatron_ssd.errors import UserError
from megatron_ssd.formatting import counted
from megatron_ssd.nvidia_smi import visible_gpus
from megatron_ssd.process import run_child
from megatron_ssd.report.stage import print_report
from megatron_ssd.sandbox.sandbox import Sandbox

log = logging.getLogger(__name__)

ROOT = CONFIG_DIR.parent


def main() -> None:
    """Entry point of ``launch/pipeline.py``."""
    options = parser("Run every stage from problems to report; stages that are up to date are skipped.")
    options.add_argument("--until", choices=list(LOOP), default="report", help="last stage to run")
    run_command(options, run)


def run(arguments: argparse.Namespace) -> None:
    """Choose the problems, make the base model if the configuration asks for one, then run the other stages.

    Raises:
        UserError: something is missing that a later stage needs. It is raised before the first stage.
    """
    started = time.monotonic()
    overrides: list[str] = arguments.overrides
    source = config_source(arguments)
    config = compose_config(overrides, source)
    scripts = scripts_until(config, arguments.until)
    overrides = [*overrides, text_override("run_dir", config.run_dir)]
    base = _base_to_make(config) if len(scripts) > 1 else None
    total = len(scripts)
    # Problems before the base: an unreadable file or a refused problem should not cost a training run.
    log.info("pipeline: %s to %s, %s in %s%s", scripts[0].stage, arguments.until, counted(total, "stage"),
             config.run_dir, "; a base model is made or found before the second" if base else "")  # fmt: skip
    if any(script.stage == "checkpoints" for script in scripts):
        given = compose_values(overrides, source)
        if not given.get("parallel"):
            gpus = [gpu.memory_bytes for gpu in visible_gpus()] if config.cluster.device == "cuda" else []
            layout, words = default_layout(config, given, num_gpus=len(gpus), gpu_bytes=min(gpus, default=0.0))
            log.info("pipeline: training %s; parallel=NAME chooses another layout", words)
            overrides += layout
    _run_all("stage", scripts[:1], overrides, source, total=total)
    if base is not None:
        overrides = [*overrides, text_override("model.path", str(_make_base(base, source)))]
    to_report = arguments.until == "report"
    ran = _run_all("stage", scripts[1:], overrides, source, first=2, total=total, report_follows=to_report)
    if to_report and scripts[-1] not in ran:
        print_report(Path(config.run_dir))  # otherwise the stage has printed it
    log.info("pipeline: %s done in %.0f s", counted(total, "stage"), time.monotonic() - started)


def _base_to_make(config: RunConfig) -> BaseConfig | None:
    """The section ``base``; None if ``model.path`` names a model.

    Raises:
        UserError: both are missing, or there is no model at ``model.path``.
    """
    model = needed(config.model, "model")
    if config.base is not None and model.path is None:
        return config.base
    folder, _ = locate_model(model.path, model.revision)
    if config.base is not None:
        log.info("pipeline: the base model is model.path = %s; base.experiment = %s is not used",
                 folder, config.base.experiment)  # fmt: skip
    return None


def _make_base(base: BaseConfig, source: ConfigSource) -> Path:
    """The folder of the base model, which is trained unless an earlier run has made it."""
    overrides, run_dir = base_run(base, source)
    log.info("pipeline: base model: %d steps in %s, once", len(BASE), run_dir)
    _run_all("base model, step", BASE, overrides, source, total=len(BASE))
    log.info("pipeline: base model ready: %s", run_dir / "export")
    return run_dir / "export"


def _run_all(
    label: str,
    scripts: Sequence[Script],
    overrides: list[str],
    source: ConfigSource,
    *,
    first: int = 1,
    total: int,
    report_follows: bool = False,
) -> list[Script]:
    """Start each script whose output is not up to date, and return these. Exits at the first that fails."""
    ran: list[Script] = []
    config = compose_config(overrides, source)
    for number, script in enumerate(scripts, start=first):
        if script.open_stage(config).is_current():
            continue
        if not ran:  # once, and not for a run that is up to date, which needs no device or sandbox
            check_run_dir(config)
            if total > 1:  # choosing the problems, the only step that can be alone, needs no device or sandbox
                check_machine(config)
        log.info("pipeline: %s %d of %d: %s (%s)", label, number, total, script.does, script.path)
        command = [sys.executable, str(ROOT / script.path), *source.options, *overrides]
        status = run_child(command, report_follows=report_follows)
        if status == EXIT_READER_LEFT:
            sys.exit(status)
        if status != 0:
            sys.exit(_failed(script, status))
        ran.append(script)
    return ran


def check_machine(config: RunConfig) -> None:
    """Raise ``UserError`` for the first thing that is missing: device or sandbox."""
    from megatron_ssd.runtime.hardware import (  # here, because torch takes seconds to import
        check_device,
        check_hardware,
    )

    check_device(config.cluster)
    if config.cluster.device == "cuda":
        check_hardware(config.precision, config.moe)
    with Sandbox(config.evaluation.sandbox) as sandbox:
        sandbox.start()


def check_run_dir(config: RunConfig) -> None:
    """Raise ``UserError`` if the run folder cannot be written."""
    folder = Path(config.run_dir)
    existing = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    if not existing.is_dir():
        raise UserError(f"run_dir = {config.run_dir}", rule=f"{existing} is not a folder", fix="use another run_dir")
    if not os.access(existing, os.W_OK):
        raise UserError(f"run_dir = {config.run_dir}", rule=f"{existing} is not writable", fix="use another run_dir")


def _failed(script: Script, status: int) -> int:
    """Log which stage stopped; returns the pipeline's exit status. The stage has already printed the reason."""
    advice = "run the same command to resume"
    if status == EXIT_USER_ERROR:
        advice = "finished stages are kept; fix the error above and run the same command"
    log.error("pipeline: %s stopped with status %d; %s", script.path, status, advice)
    return status if status > 0 else 128 - status  # a signal's number is negative
