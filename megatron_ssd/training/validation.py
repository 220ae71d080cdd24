"""The loss on held-out rows: forward only, weighted as in training, every row once."""

from __future__ import annotations

import torch

from megatron_ssd.config.run import RunConfig
from megatron_ssd.training.data import BatchSource
from megatron_ssd.training.state import TrainingState
from megatron_ssd.training.step import run_micro_batches


class Validation:
    """Measures ``state`` on all rows of ``source``, a single pass over the held-out part of the data set."""

    def __init__(self, run: RunConfig, state: TrainingState, source: BatchSource, *, device: str) -> None:
        assert source.single_pass
        self._run, self._state, self._source, self._device = run, state, source, device

    @torch.no_grad()
    def loss(self) -> float:
        """Weighted mean over all held-out positions, the same on every rank; every rank must call it."""
        for chunk in self._state.chunks:
            chunk.eval()
        total = weight = 0.0
        for number in range(1, self._source.batches_in_pass + 1):
            mean, _ = run_micro_batches(
                self._state, self._source, self._run.training, number, forward_only=True, device=self._device
            )
            total += mean * self._source.normalizer(number)
            weight += self._source.normalizer(number)
        for chunk in self._state.chunks:
            chunk.train()
        return total / weight
