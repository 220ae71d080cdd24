"""Asks a training loop in this process to stop, twice; a test runs it as a module."""

from __future__ import annotations

import os
import signal

import torch.distributed as dist

from megatron_ssd.training import trainer


def main() -> None:
    """Print the first request that the loop sees, and more only if it survives the second."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    trainer._SAME_REQUEST_SECONDS = -1.0
    with trainer.GracefulShutdown("cpu") as shutdown:
        os.kill(os.getpid(), signal.SIGTERM)
        request = shutdown.requested()
        assert request is not None
        print(request.__name__, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        print("still here", flush=True)


if __name__ == "__main__":
    main()
