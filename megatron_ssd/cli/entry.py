"""What every entry point does around its stage: parse, check, log, run, and end with a line and a status.

Exit status: 0 done, 2 the user can mend it (one line on standard error), 75 stopped by SIGTERM or SIGUSR1 with its
state saved (EX_TEMPFAIL: a scheduler should start it again), 130 interrupted at the keyboard, 1 anything else.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from megatron_ssd.cli.base import with_base_named
from megatron_ssd.cli.compose import CONFIG_DIR, compose_config, compose_values, groups
from megatron_ssd.cli.print_config import OPTION, Parser, as_yaml, every_key, wants_all
from megatron_ssd.config.build import build_config
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import MissingModelError, Requeue, UserError
from megatron_ssd.process import UNDER_PIPELINE, die_with_parent_if_asked

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_REQUEUE = os.EX_TEMPFAIL
_TRACEBACK_VARIABLE = "MEGATRON_SSD_TRACEBACK"
# What Megatron-Core says at every import and load. Which layers run is a choice of ``precision``, and logged.
_SAID_ELSEWHERE = (
    "Transformer Engine and Apex are not installed",
    "Apex is not installed",
    "`load_state_dict` is deprecated",
)


def main(stage: Callable[[RunConfig], None], *, description: str, argv: list[str] | None = None) -> None:
    """Run ``stage`` with the configuration of the command line, then exit the process unless all went well.

    Args:
        stage: takes the checked configuration.
        description: first paragraph of ``--help``.
        argv: arguments in place of ``sys.argv[1:]``.
    """
    die_with_parent_if_asked()
    arguments = parser(description).parse_intermixed_args(argv)
    run_guarded(lambda: _run(stage, arguments), traceback=arguments.traceback)


def parser(description: str) -> Parser:
    """The options that all entry points share."""
    listing = "\n".join(f"  {group:12} {', '.join(names)}" for group, names in groups().items())
    result = Parser(
        description=description,
        epilog=f"Groups (GROUP=NAME) and what they offer:\n{listing}\n\n"
        "A group or key may be written with a plus in front or without one; it means the same.\n"
        f"Any key can be set as SECTION.KEY=VALUE; {OPTION}=all lists every key with its value, defaults included.",
    )
    result.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides, e.g. model=tiny seed=1")
    result.add_argument("--config-dir", type=Path, default=CONFIG_DIR, help="folder of the YAML groups")
    result.add_argument("--traceback", action="store_true", help="show where in the code an error was raised")
    return result


def run_guarded(action: Callable[[], None], *, traceback: bool = False) -> None:
    """Run ``action``; turn what a user can mend into one line on standard error and an exit status."""
    if traceback or os.environ.get(_TRACEBACK_VARIABLE):
        os.environ[_TRACEBACK_VARIABLE] = "1"  # stages started from here show theirs too
        action()
        return
    try:
        action()
    except UserError as error:
        _stop(f"error: {error}", EXIT_USER_ERROR)
    except Requeue:
        _stop("stopped by a signal: the state is saved; run the same command to go on", EXIT_REQUEUE)
    except KeyboardInterrupt:
        # Under the pipeline, which Ctrl-C reaches as well, it is the pipeline that says so, once.
        said_above = UNDER_PIPELINE in os.environ
        _stop("" if said_above else "interrupted: finished work is kept; run the same command to go on",
              EXIT_INTERRUPTED)  # fmt: skip
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" at {error.filename}" if error.filename else ""
        _stop(f"error: disk full{where}: finished work is kept; free some space and run the same command to go on", 1)


def _run(stage: Callable[[RunConfig], None], arguments: argparse.Namespace) -> None:
    if prints_config(arguments):
        return
    config_dir = arguments.config_dir.resolve()
    config = compose_config(arguments.overrides, config_dir)
    start_logging()
    try:
        stage(config)
    except MissingModelError as error:
        raise with_base_named(error, config, config_dir) from None


def prints_config(arguments: argparse.Namespace) -> bool:
    """Print the configuration and return true where ``--print-config`` asks for it."""
    if not arguments.print_config:
        return False
    values = compose_values(arguments.overrides, arguments.config_dir.resolve())
    print(every_key(build_config(values)) if wants_all(arguments) else as_yaml(values), end="")
    return True


def start_logging() -> None:
    """Our own log lines on standard error; libraries only from warnings up."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    logging.getLogger("megatron_ssd").setLevel(logging.INFO)
    for message in _SAID_ELSEWHERE:
        warnings.filterwarnings("ignore", message=message)


def _stop(line: str, status: int) -> None:
    # Under torchrun every process meets the same error; one line of it is enough.
    if line and int(os.environ.get("LOCAL_RANK", "0")) == 0:
        sys.stdout.flush()
        print(line, file=sys.stderr, flush=True)
    sys.exit(status)
