"""Runs stages or tools from the command line.

Exit status: 0 done, 2 a user error (one line on standard error), 75 stopped by SIGTERM or SIGUSR1 with the state saved
(EX_TEMPFAIL: a scheduler should start it again), 130 interrupted at the keyboard, 141 the reader of the output has left
(``| head``), 1 anything else.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import itertools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from megatron_ssd.cli.compose import CONFIG_DIR, base_run, compose_config, compose_values, groups, values_of_tool
from megatron_ssd.cli.terminal import any_output
from megatron_ssd.config.build import build
from megatron_ssd.config.reference import as_yaml, every_key, every_key_of_tool, help_text
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import MissingModelError, Requeue, UserError
from megatron_ssd.process import PARENT_REPORTS, die_with_parent_if_asked, forget_launcher
from megatron_ssd.signals import requeue_on_signals

T = TypeVar("T")

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_REQUEUE = os.EX_TEMPFAIL
# What is printed at the end of a run that a signal has stopped, by exit status.
STOPPED = {
    EXIT_INTERRUPTED: "interrupted: finished work is kept; run the same command to resume",
    EXIT_REQUEUE: "stopped by a signal: the state is saved; run the same command to resume",
}
_TRACEBACK_VARIABLE = "MEGATRON_SSD_TRACEBACK"
_PRINT = "--print-config"
_GIVEN, _ALL = "given", "all"
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
    run_command(parser(description), lambda arguments: _run(stage, arguments), takes_ranks=takes_ranks)


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
        if arguments.print_config:
            values = compose_values(arguments.overrides, arguments.config_dir.resolve())
            print(every_key(build(RunConfig, values)) if arguments.print_config == _ALL else as_yaml(values), end="")
            return
        start_logging()
        action(arguments)

    run_guarded(act, traceback=arguments.traceback)


@any_output()
def main_of_tool(run: Callable[[T], None], config: type[T], *, description: str | None) -> None:
    """Run a tool that has no groups: its ``KEY=VALUE`` arguments are the fields of one small dataclass, ``config``."""
    forget_launcher()
    arguments = _Parser(description=description, epilog=help_text(config)).parse_intermixed_args()

    def act() -> None:
        values = values_of_tool(arguments.overrides)
        if arguments.print_config:
            print(every_key_of_tool(config, values) if arguments.print_config == _ALL else as_yaml(values), end="")
            return
        start_logging()
        run(build(config, values))

    run_guarded(act)


class _Parser(argparse.ArgumentParser):
    """Takes overrides, and ``--print-config`` or ``--print-config=all`` before, between or after them."""

    def __init__(self, *, description: str | None, epilog: str) -> None:
        super().__init__(description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="sets a key; see below")
        self.add_argument(
            _PRINT, nargs="?", choices=[_GIVEN, _ALL], metavar=_ALL,
            help=f"without {_ALL}, print what was given and stop; "
            f"{_PRINT}={_ALL} prints every key with its value, defaults included, as YAML",
        )  # fmt: skip

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, with a value for the bare option."""
        pairs = itertools.pairwise([*(sys.argv[1:] if args is None else args), ""])
        named = [f"{_PRINT}={_GIVEN}" if one == _PRINT and after != _ALL else one for one, after in pairs]
        return super().parse_known_args(named, namespace)


def parser(description: str) -> argparse.ArgumentParser:
    """The options that stages, the pipeline and the planner share."""
    listing = "\n".join(f"  {group:14} {', '.join(names)}" for group, names in groups().items())
    result = _Parser(
        description=description,
        epilog=f"Groups and their choices (GROUP=NAME):\n{listing}\n\n"
        "A plus in front of a group or key is allowed and changes nothing.\n"
        f"Any key can be set as SECTION.KEY=VALUE; {_PRINT}=all lists every key with its value, defaults included.",
    )
    result.add_argument("--config-dir", type=Path, default=CONFIG_DIR, help="folder of the YAML groups")
    result.add_argument("--traceback", action="store_true", help="show where in the code an error was raised")
    return result


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


def _run(stage: Callable[[RunConfig], None], arguments: argparse.Namespace) -> None:
    config_dir = arguments.config_dir.resolve()
    config = compose_config(arguments.overrides, config_dir)
    try:
        stage(config)
    except MissingModelError as error:
        raise _with_base_named(error, config, config_dir) from None


def _with_base_named(error: MissingModelError, config: RunConfig, config_dir: Path) -> MissingModelError:
    """The error of a stage that found no ``model.path``, with the base model that the pipeline would use."""
    if config.base is None:
        return error
    _, run_dir = base_run(config.base, config_dir)
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
