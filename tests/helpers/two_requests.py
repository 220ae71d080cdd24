"""Asks a training loop in this process to stop, twice; a test runs it as a module."""

from __future__ import annotations

import os
import signal

from megatron_ssd import signals
from megatron_ssd.training import shutdown


def main() -> None:
    """Print the first request that the loop sees, and more only if it survives the second."""
    signals._SAME_REQUEST_SECONDS = -1.0
    with shutdown.GracefulShutdown() as graceful:
        os.kill(os.getpid(), signal.SIGTERM)
        graceful.agree(graceful.code)
        request = graceful.requested()
        assert request is not None
        print(request.__name__, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        print("still here", flush=True)


if __name__ == "__main__":
    main()
