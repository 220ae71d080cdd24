"""What an iteration changes, in one place: a checkpoint is this, whole, and nothing else is needed to go on."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer

from megatron_ssd.training.ema import EmaWeights
from megatron_ssd.training.watch import LossWatch


@dataclass
class TrainingState:
    """A model under training on this rank. ``iteration`` counts finished iterations.

    Data order and learning rate follow from the iteration number.
    """

    chunks: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    ema: EmaWeights | None = None
    watch: LossWatch = field(default_factory=LossWatch)
    iteration: int = 0

    @property
    def models(self) -> list[GPTModel]:
        """The models themselves: their names are the checkpoint's, with no wrapper's prefix."""
        return [chunk.module for chunk in self.chunks]
