"""torchrun wrapper that hides its failure banner.

    python -m megatron_ssd.cli.ranks --standalone --nproc-per-node=2 launch/train.py experiment=demo

Takes torchrun's arguments. The exit status is that of the process that failed first: 75 if a signal stopped training
with its state saved. SIGINT, SIGTERM and SIGUSR1 are passed on to the processes, which have as long as saving takes.
torchrun itself kills them half a minute after SIGINT or SIGTERM, and SIGUSR1 kills torchrun.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from types import FrameType

import psutil
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

_ONE_THREAD = "1"  # each process sets its own number later; a value keeps torchrun from warning that it chose one
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_ONE_NODE = "--standalone"
_SIGNALS_OPTION = "--signals-to-handle"


def main() -> None:
    """Start the processes and wait for them."""
    os.environ.setdefault("OMP_NUM_THREADS", _ONE_THREAD)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    for number in _PASSED_ON:
        signal.signal(number, _pass_on)
    try:
        run.main(torchrun_arguments(sys.argv[1:]))
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        sys.exit(first.exitcode if first.exitcode > 0 else 128 - first.exitcode)


def torchrun_arguments(arguments: list[str]) -> list[str]:
    """``arguments`` for the installed torchrun, after those that this module adds; what the caller gives counts."""
    added = []
    if _ONE_NODE in arguments:  # the host's own name may not resolve, and torchrun would wait minutes for it
        added.append("--local-addr=127.0.0.1")
    if _SIGNALS_OPTION in run.get_args_parser().format_help():  # later versions of torch
        added.append(f"{_SIGNALS_OPTION}=SIGHUP,SIGQUIT")
    return [*added, *arguments]


def _pass_on(number: int, frame: FrameType | None) -> None:
    children = psutil.Process().children()
    for child in children:
        child.send_signal(number)
    if not children:  # no process was started yet
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


if __name__ == "__main__":
    main()
