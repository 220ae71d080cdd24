"""Runs stages or tools from the command line.

Exit status: 0 done, 2 a user error (one line on standard error), 75 stopped by SIGTERM, SIGUSR1 or the watchdog of
training, with the state saved (EX_TEMPFAIL: a scheduler should start it again), 130 interrupted at the keyboard, 141
the reader of the output has left (``| head``), 1 anything else.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from megatron_ssd.artifacts.manifest import MADE_BY
from megatron_ssd.cli.compose import (
    INFO_CHOICES,
    SHIPPED,
    ConfigSource,
    base_run,
    complete,
    compose_config,
    compose_values,
    groups,
    select,
    show_info,
    values_of_tool,
)
from megatron_ssd.cli.multirun import run_points
from megatron_ssd.cli.terminal import any_output
from megatron_ssd.config.build import build
from megatron_ssd.config.reference import as_yaml, every_key, every_key_of_tool, help_text
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import MissingModelError, Requeue, UserError, require
from megatron_ssd.process import PARENT_REPORTS, die_with_parent_if_asked, forget_launcher
from megatron_ssd.signals import requeue_on_signals

T = TypeVar("T")

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_REQUEUE = os.EX_TEMPFAIL
# What is printed at the end of a run that a signal or the watchdog of training has stopped, by exit status.
STOPPED = {
    EXIT_INTERRUPTED: "interrupted: finished work is kept; run the same command to resume",
    EXIT_REQUEUE: "stopped before the end: the state is saved; run the same command to resume",
}
_TRACEBACK_VARIABLE = "MEGATRON_SSD_TRACEBACK"
_STAGE_OF = {Path(path).name: stage for stage, path in MADE_BY.items()}
# Megatron-Core gives these warnings at every import and load. The layers are a choice of ``precision``, and logged.
_EXPECTED_WARNINGS = (
    "Transformer Engine and Apex are not installed",
    "Apex is not installed",
    "`load_state_dict` is deprecated",
)


def main(stage: Callable[[RunConfig], None], *, description: str, takes_ranks: bool = False) -> None:
    """Run ``stage`` with the configuration of the command line. Exits the process if that fails.

    Args:
        stage: takes the checked configuration.
        description: first paragraph of ``--help``.
        takes_ranks: whether a launcher such as torchrun may start several of these processes as its ranks. Otherwise
            its variables are left over from another command, and ignored.
    """
    die_with_parent_if_asked()
    environment = dict(os.environ)  # with the variables of a SLURM job, which may be forgotten below
    run_command(parser(description), lambda arguments: _run(stage, arguments, environment), takes_ranks=takes_ranks)


@any_output()
def run_command(
    options: argparse.ArgumentParser, action: Callable[[argparse.Namespace], None], *, takes_ranks: bool = False
) -> None:
    """Run ``action`` with the arguments of the command line, or print the configuration if they ask for that.

    Args:
        options: made by ``parser``.
        action: takes the parsed arguments.
        takes_ranks: see ``main``.
    """
    if not takes_ranks:
        forget_launcher()
    arguments = options.parse_intermixed_args()

    def act() -> None:
        if show_and_stop(arguments):
            return
        start_logging()
        if arguments.multirun:
            run_points(arguments.overrides, config_source(arguments))
        else:
            action(arguments)

    run_guarded(act, traceback=arguments.traceback)


@any_output()
def main_of_tool(run: Callable[[T], None], config: type[T], *, description: str | None) -> None:
    """Run a tool that has no groups: its ``KEY=VALUE`` arguments are the fields of one small dataclass, ``config``."""
    forget_launcher()
    arguments = _parser(description, help_text(config)).parse_intermixed_args()

    def act() -> None:
        values = values_of_tool(arguments.overrides)
        if arguments.cfg is not None:
            print(as_yaml(values) if arguments.cfg == "job" else every_key_of_tool(config, values), end="")
            return
        start_logging()
        run(build(config, values))

    run_guarded(act)


def _parser(description: str | None, epilog: str) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="sets a key; see below")
    result.add_argument(
        "--cfg", "-c", choices=["job", "all"],
        help="print the configuration as YAML and stop: job, what was given; all, every key, defaults included",
    )  # fmt: skip
    return result


def parser(description: str) -> argparse.ArgumentParser:
    """The options that stages, the pipeline and the planner share. Those of Hydra have its names."""
    listing = "\n".join(f"  {group:14} {', '.join(names)}" for group, names in groups().items())
    result = _parser(
        description,
        f"Groups and their choices (GROUP=NAME):\n{listing}\n\n"
        "A plus in front of a group or key is allowed and changes nothing.\n"
        "Any key can be set as SECTION.KEY=VALUE; --cfg all lists every key with its value, defaults included.",
    )
    result.add_argument("--package", "-p", metavar="SECTION", help="with --cfg: only this section, such as optimizer")
    result.add_argument(
        "--info", "-i", nargs="?", const="all", choices=INFO_CHOICES, help="print how Hydra composes the configuration"
    )
    result.add_argument(
        "--multirun", "-m", action="store_true", help="start one run for each combination of values such as a,b,c"
    )
    result.add_argument(
        "--config-dir", "-cd", type=Path, metavar="FOLDER", help="search this folder of YAML files first"
    )
    result.add_argument(
        "--config-name", "-cn", default=SHIPPED.config_name, metavar="NAME", help="root of the YAML files"
    )
    result.add_argument(
        "--shell-completion", "-sc", action="store_true",
        help='complete groups and keys with the tab key: eval "$(python launch/train.py -sc install=bash)"',
    )  # fmt: skip
    result.add_argument("--traceback", action="store_true", help="show where in the code an error was raised")
    return result


def config_source(arguments: argparse.Namespace) -> ConfigSource:
    """Where the configuration of a command line comes from."""
    return ConfigSource(arguments.config_dir and arguments.config_dir.expanduser().resolve(), arguments.config_name)


def show_and_stop(arguments: argparse.Namespace) -> bool:
    """Print what ``--cfg``, ``--info`` or ``--shell-completion`` ask for; whether one of them was given."""
    overrides, source = arguments.overrides, config_source(arguments)
    require(arguments.package is None or arguments.cfg is not None, f"--package {arguments.package}",
            rule="selects a part of what --cfg prints", fix="add --cfg job or --cfg all")  # fmt: skip
    require(not arguments.multirun or (arguments.cfg is None and arguments.info is None), "--multirun",
            rule="starts runs, and --cfg and --info print one configuration",
            fix="leave it out and give each key one value")  # fmt: skip
    if arguments.cfg is not None:
        values = compose_values(overrides, source)
        if arguments.cfg == "job":
            print(as_yaml(select(values, arguments.package)), end="")
        elif arguments.package is None:
            print(every_key(build(RunConfig, values)), end="")
        else:
            every = dataclasses.asdict(build(RunConfig, values))
            print(as_yaml(select(every, arguments.package)), end="")
    elif arguments.info is not None:
        show_info(arguments.info, overrides, source)
    elif arguments.shell_completion:
        complete(overrides, source)
    return arguments.cfg is not None or arguments.info is not None or arguments.shell_completion


def run_guarded(action: Callable[[], None], *, traceback: bool = False) -> None:
    """Run ``action``. Expected errors become one line on standard error and an exit status."""
    if traceback or os.environ.get(_TRACEBACK_VARIABLE):
        os.environ[_TRACEBACK_VARIABLE] = "1"  # for stages that are started from here
        action()
        return
    try:
        with requeue_on_signals():
            action()
    except UserError as error:
        _stop(f"error: {error}", EXIT_USER_ERROR)
    except KeyboardInterrupt as request:
        status = EXIT_REQUEUE if isinstance(request, Requeue) else EXIT_INTERRUPTED
        _stop("" if PARENT_REPORTS in os.environ else STOPPED[status], status)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" at {error.filename}" if error.filename else ""
        _stop(f"error: disk full{where}: finished work is kept; free some space and run the same command to resume", 1)


def _run(stage: Callable[[RunConfig], None], arguments: argparse.Namespace, environment: Mapping[str, str]) -> None:
    source = config_source(arguments)
    config = compose_config(arguments.overrides, source)
    name = _STAGE_OF.get(Path(sys.argv[0]).name)
    if "SLURM_JOB_ID" in environment and name is not None:
        from megatron_ssd.cluster.requeues import check_requeues  # imports much that other commands do not need

        check_requeues(config, name, environment)
    try:
        stage(config)
    except MissingModelError as error:
        raise _with_base_named(error, config, source) from None


def _with_base_named(error: MissingModelError, config: RunConfig, source: ConfigSource) -> MissingModelError:
    """The error of a stage that found no ``model.path``, with the base model that the pipeline would use."""
    if config.base is None:
        return error
    _, run_dir = base_run(config.base, source)
    folder = run_dir / "export"
    if folder.is_dir():
        fix = f"the pipeline has made the base model of this configuration: set model.path={folder}"
    else:
        fix = (
            f"launch/pipeline.py makes the base model of this configuration, {folder}: run it with the same arguments, "
            "for example with --until samples, or set model.path to a Hugging Face folder"
        )
    return MissingModelError(error.what, rule=error.rule, fix=fix)


def start_logging() -> None:
    """Log to standard error: this package from info up, libraries from warnings up."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    logging.getLogger("megatron_ssd").setLevel(logging.INFO)
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def _stop(line: str, status: int) -> None:
    # Under torchrun every process raises the same error; one line is enough.
    if line and int(os.environ.get("LOCAL_RANK", "0")) == 0:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        print(line, file=sys.stderr, flush=True)
    sys.exit(status)
