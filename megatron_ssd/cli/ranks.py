"""torchrun wrapper that passes signals on and reports failures in one line.

    python -m megatron_ssd.cli.ranks --standalone --nproc-per-node=2 launch/train.py experiment=demo

Takes torchrun's arguments. The exit status is that of the process that failed first: 75 if a signal stopped training
with its state saved. SIGINT, SIGTERM and SIGUSR1 are passed on to the processes, which have as long as saving takes.
torchrun itself kills them half a minute after SIGINT or SIGTERM, and SIGUSR1 kills torchrun.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from types import FrameType
from typing import NoReturn

import psutil

from megatron_ssd.cli.entry import EXIT_INTERRUPTED, EXIT_REQUEUE, STOPPED
from megatron_ssd.errors import first_line
from megatron_ssd.process import DIE_WITH_PARENT, PARENT_REPORTS
from megatron_ssd.signals import OF_SCHEDULERS, REQUEST_OF

_ONE_THREAD = "1"  # each process sets its own number later; a value keeps torchrun from warning that it chose one
_ONE_NODE = "--standalone"
_SIGNALS_OPTION = "--signals-to-handle"
_RAISED = 1  # the status of a Python process that ended with an exception
_IS_REPORTED = PARENT_REPORTS in os.environ  # whether the pipeline says that a signal has stopped the run
_passed_on: list[int] = []


def main() -> None:
    """Start the processes and wait for them."""
    for number in REQUEST_OF:
        signal.signal(number, _pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUEST_OF)  # launch/train.py blocks them before it becomes this program
    # A lost connection would be a warning of twenty lines from each thread that uses it.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Imported after the signals are handled, because it takes seconds.
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    os.environ.setdefault("OMP_NUM_THREADS", _ONE_THREAD)
    os.environ[PARENT_REPORTS] = "1"  # for each process, whose siblings would say the same
    os.environ[DIE_WITH_PARENT] = "1"  # a killed launcher leaves no processes, which would write files
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run.main(torchrun_arguments(sys.argv[1:]))
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        status = exit_status(first.exitcode)
        _end(status, STOPPED.get(status) or what_ended(rank, first.exitcode))
    except RendezvousError as error:
        if _passed_on:
            _end_as_asked(_passed_on[0])
        _end(_RAISED, f"error: the processes of another node have ended or cannot be reached ({first_line(error)}); "
             "its log says why")  # fmt: skip


def exit_status(exitcode: int) -> int:
    """The status to end with after a process ended with ``exitcode``, which is negative for a signal.

    A process that has not begun to handle signals is killed by the signal that was passed on. It had nothing to save.
    """
    if -exitcode in _passed_on:
        return EXIT_REQUEUE if -exitcode in OF_SCHEDULERS else EXIT_INTERRUPTED
    return exitcode if exitcode > 0 else 128 - exitcode


def what_ended(rank: int, exitcode: int) -> str | None:
    """The line that names the process; None if that process has said itself why it ended."""
    if exitcode == _RAISED:
        how = "ended with the error above"
    elif exitcode < 0:
        how = f"was killed by {signal.Signals(-exitcode).name}"
    else:
        return None
    return f"error: rank {rank} on {socket.gethostname()} {how}; the other processes were ended"


def torchrun_arguments(arguments: list[str]) -> list[str]:
    """``arguments`` for the installed torchrun, after those that this module adds; what the caller gives counts."""
    from torch.distributed import run

    added = []
    if _ONE_NODE in arguments:  # the host's own name may not resolve, and torchrun would wait minutes for it
        added.append("--local-addr=127.0.0.1")
    if _SIGNALS_OPTION in run.get_args_parser().format_help():  # later versions of torch
        added.append(f"{_SIGNALS_OPTION}=SIGHUP,SIGQUIT")
    return [*added, *arguments]


def _pass_on(number: int, frame: FrameType | None) -> None:
    _passed_on.append(number)
    children = psutil.Process().children()
    for child in children:
        child.send_signal(number)
    if not children:  # no process was started yet
        _end_as_asked(number)


def _end_as_asked(number: int) -> NoReturn:
    status = exit_status(-number)
    _end(status, STOPPED[status])


def _end(status: int, line: str | None) -> NoReturn:
    if line is not None and not (_IS_REPORTED and status in STOPPED):
        print(line, file=sys.stderr, flush=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
