"""torchrun without the page of text that it adds when a process has said, in one line, what is wrong.

    python -m megatron_ssd.cli.ranks --standalone --nproc-per-node=2 launch/train.py +experiment=demo

Takes torchrun's own arguments. Ends with the status of the process that failed first.
"""

from __future__ import annotations

import logging
import os
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

_ONE_THREAD = "1"  # each process sets its own number later; this keeps torchrun from warning that it chose this one


def main() -> None:
    """Start the processes and wait for them."""
    os.environ.setdefault("OMP_NUM_THREADS", _ONE_THREAD)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run.main()
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        sys.exit(first.exitcode if first.exitcode > 0 else 128 - first.exitcode)


if __name__ == "__main__":
    main()
