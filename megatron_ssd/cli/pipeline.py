"""The whole loop, stage after stage, each in a process of its own.

A stage that is up to date is not even started. A stage that stops ends the pipeline with that stage's status; what is
finished stays, and the next start goes on behind it. Stages die with the pipeline, so that a killed one leaves nobody
writing in its place.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_ssd.artifacts.hub import locate_model
from megatron_ssd.artifacts.manifest import MADE_BY
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.cli.base import base_run
from megatron_ssd.cli.compose import CONFIG_DIR, compose_config
from megatron_ssd.cli.entry import EXIT_USER_ERROR, parser, prints_config, run_guarded, start_logging
from megatron_ssd.cli.preflight import check_machine
from megatron_ssd.config.run import BaseConfig, RunConfig, needed
from megatron_ssd.dataset.corpus import world_stage
from megatron_ssd.dataset.stage import dataset_stage
from megatron_ssd.errors import ConfigError
from megatron_ssd.evaluation.stage import evaluation_stage
from megatron_ssd.export.stage import export_stage
from megatron_ssd.general_benchmarks.stage import regression_stage
from megatron_ssd.generation.scoring import scores_stage
from megatron_ssd.generation.stage import samples_stage
from megatron_ssd.problems.stage import problems_stage
from megatron_ssd.process import run_child
from megatron_ssd.report.stage import print_report, report_stage
from megatron_ssd.training.stage import training_stage

log = logging.getLogger(__name__)

ROOT = CONFIG_DIR.parent


@dataclass(frozen=True)
class Script:
    """An entry point and how to ask, without starting it, whether its output stands already."""

    path: str
    does: str
    open_stage: Callable[[RunConfig], Stage]
    torchrun: bool = False  # one process a device of the layout


_TRAIN = Script(MADE_BY["checkpoints"], "train on the data set with Megatron-Core", training_stage, torchrun=True)
_EXPORT = Script(MADE_BY["export"], "write the trained weights as a Hugging Face folder", export_stage)
_WORLD = Script(MADE_BY["tokenizer"], "make the small world: its tokenizer and a corpus to train on", world_stage)
BASE = [_WORLD, _TRAIN, _EXPORT]
LOOP = {
    "problems": Script(
        MADE_BY["problems"], "choose the problems to sample and hold them against the benchmark", problems_stage
    ),
    "samples": Script(
        MADE_BY["samples"], "sample responses to the problems from the frozen model with vLLM", samples_stage
    ),
    # where a proxy model is named
    "scores": Script(MADE_BY["scores"], "score each response under the proxy model", scores_stage),
    "dataset": Script(MADE_BY["dataset"], "filter the samples and write them as Megatron's data set", dataset_stage),
    "checkpoints": _TRAIN,
    "export": _EXPORT,
    "eval": Script(
        MADE_BY["eval"], "decode the benchmark with base and tuned model and run the programs", evaluation_stage
    ),
    # where tasks are named
    "regression": Script(MADE_BY["regression"], "measure other benchmarks through lm-eval", regression_stage),
    "report": Script(MADE_BY["report"], "compare base and tuned model and write the report", report_stage),
}


def main() -> None:
    """Entry of ``launch/pipeline.py``."""
    options = parser("Run every stage from problems to report; stages that are up to date are skipped.")
    options.add_argument("--until", choices=list(LOOP), default="report", help="stop after this stage's folder stands")
    arguments = options.parse_intermixed_args()
    run_guarded(lambda: run(arguments), traceback=arguments.traceback)


def run(arguments: argparse.Namespace) -> None:
    """Choose the problems, make the base model where the configuration asks for one, then the rest of the loop.

    Raises:
        UserError: before the first stage, where something is missing that a later one needs.
    """
    if prints_config(arguments):
        return
    start_logging()
    started = time.monotonic()
    overrides: list[str] = arguments.overrides
    config_dir = arguments.config_dir.resolve()
    config = compose_config(overrides, config_dir)
    for section in ("model", "problems", "benchmark", "sampling"):
        needed(getattr(config, section), section, fix=f"choose one with {section}=NAME, or take experiment=demo")
    base = _base_to_make(config)
    overrides = [*overrides, f"run_dir={config.run_dir}"]
    left_out = {
        "scores": None if config.proxy else "a proxy model makes scores; name one with proxy.path=FOLDER",
        "regression": None if config.regression.tasks else "tasks of lm-eval make it; name some with regression.tasks",
    }
    names = [name for name in LOOP if not left_out.get(name)]
    if arguments.until not in names:
        rule, _, fix = str(left_out[arguments.until]).partition("; ")
        raise ConfigError(f"--until {arguments.until}", rule=rule, fix=fix)
    scripts = [LOOP[name] for name in names[: names.index(arguments.until) + 1]]
    total = len(scripts)
    # Problems before the base: a file that cannot be read, or a gate that refuses, should not cost a training run.
    log.info("pipeline: %s to %s, %d stages in %s%s", names[0], arguments.until, total, config.run_dir,
             "; before the second of them a base model is made, or found" if base else "")  # fmt: skip
    _run_all("stage", scripts[:1], overrides, config_dir, total=total)
    if base is not None:
        overrides = [*overrides, f"model.path={_make_base(base, config_dir)}"]
    to_report = arguments.until == "report"
    started_scripts = _run_all(
        "stage", scripts[1:], overrides, config_dir, first=2, total=total, report_follows=to_report
    )
    if to_report and LOOP["report"] not in started_scripts:
        print_report(Path(config.run_dir))  # else the stage itself has printed it
    log.info("pipeline: all %d stages done in %.0f s", total, time.monotonic() - started)


def _base_to_make(config: RunConfig) -> BaseConfig | None:
    """The section ``base``; None where ``model.path`` names a model, which then takes its place.

    Raises:
        UserError: neither of them is there, or no model is where ``model.path`` says.
    """
    model = needed(config.model, "model", fix="choose one with model=NAME")
    if config.base is not None and model.path is None:
        return config.base
    folder, _ = locate_model(model.path, model.revision)
    if config.base is not None:
        log.info("pipeline: model.path names the base model, %s; none is made from base.experiment = %s",
                 folder, config.base.experiment)  # fmt: skip
    return None


def _make_base(base: BaseConfig, config_dir: Path) -> Path:
    """The folder of the frozen base model, trained now or found as an earlier run left it."""
    overrides, run_dir = base_run(base, config_dir)
    log.info("pipeline: the base model: %d steps of its own in %s, once", len(BASE), run_dir)
    _run_all("base model, step", BASE, overrides, config_dir, total=len(BASE))
    log.info("pipeline: the base model stands in %s; on with the stages", run_dir / "export")
    return run_dir / "export"


def _run_all(
    label: str,
    scripts: Sequence[Script],
    overrides: list[str],
    config_dir: Path,
    *,
    first: int = 1,
    total: int,
    report_follows: bool = False,
) -> list[Script]:
    """Start each script whose output is not up to date and return these; stop with the first that fails."""
    ran = []
    config = compose_config(overrides, config_dir)
    options = [] if config_dir == CONFIG_DIR else [f"--config-dir={config_dir}"]
    for number, script in enumerate(scripts, start=first):
        if script.open_stage(config).is_current():
            continue
        check_machine(config)  # of a run that is up to date nothing is asked
        log.info("pipeline: %s %d of %d: %s (%s)", label, number, total, script.does, script.path)
        command = [*_launcher(script, config), str(ROOT / script.path), *options, *overrides]
        status = run_child(command, report_follows=report_follows)
        if status != 0:
            sys.exit(_failed(script, status))
        ran.append(script)
    return ran


def _launcher(script: Script, config: RunConfig) -> list[str]:
    if not script.torchrun:
        return [sys.executable]
    nproc = f"--nproc-per-node={config.parallel.world_size}"
    return [sys.executable, "-m", "megatron_ssd.cli.ranks", "--standalone", nproc]


def _failed(script: Script, status: int) -> int:
    """Say which stage stopped; the stage itself has said why."""
    goes_on = "the same command goes on from there"
    if status == EXIT_USER_ERROR:
        goes_on = "what is finished stays; mend what its error line names and start again"
    log.error("pipeline: %s stopped with status %d; %s", script.path, status, goes_on)
    return status if status > 0 else 128 - status  # a signal's number comes back negative
