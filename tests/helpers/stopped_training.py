"""Training runs that are stopped before their last iteration."""

from __future__ import annotations

import gc
from unittest import mock

import pytest

from launch.train import train
from megatron_ssd.config.run import RunConfig
from megatron_ssd.training.shutdown import GracefulShutdown


def train_until_stopped(config: RunConfig, *, iteration: int, request: type[BaseException] = KeyboardInterrupt) -> None:
    """Train until a stop is requested in ``iteration``; training then saves a checkpoint and raises ``request``."""
    requests = iter([None] * (iteration - 1) + [request])

    def requested(self: GracefulShutdown) -> type[BaseException] | None:
        return next(requests)

    with mock.patch.object(GracefulShutdown, "requested", requested), pytest.raises(request):
        train(config)
    gc.collect()  # the frames of the stopped run still hold the stage lock
