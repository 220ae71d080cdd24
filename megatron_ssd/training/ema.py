"""Keeps an exponential moving average (EMA) of the weights.

After the n-th applied update, ema(n) = decay x ema(n - 1) + (1 - decay) x weights(n), with ema(0) the weights that
training started from. It is in fp32, which takes 4 bytes per parameter of this rank. A checkpoint stores it under the
parameters' keys with the prefix ``ema.``, so that it is resharded and exported like them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from torch import Tensor, nn

PREFIX = "ema"


class EmaWeights:
    """The EMA of the parameters of ``modules``, which starts as a copy of them.

    Args:
        modules: this rank's model chunks.
        decay: in (0, 1).

    Attributes:
        averages: one per parameter, in the order of ``modules``.
    """

    def __init__(self, modules: Sequence[nn.Module], decay: float) -> None:
        self._decay = decay
        self._parameters = [parameter for module in modules for parameter in module.parameters()]
        # Not ``float()``, which returns fp32 parameters themselves.
        self.averages = [parameter.detach().to(torch.float32, copy=True) for parameter in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current weights."""
        for average, parameter in zip(self.averages, self._parameters, strict=True):
            average.lerp_(parameter.float(), 1.0 - self._decay)

    def sharded_state_dict(self, model_state: dict[str, Any]) -> dict[int, Any]:
        """The average as Megatron-Core's sharded tensors.

        Args:
            model_state: the sharded state of the same modules, which gives shapes and offsets.
        """
        index = {parameter: number for number, parameter in enumerate(self._parameters)}
        shards = {
            index[shard.data]: make_sharded_optimizer_tensor(shard, self.averages[index[shard.data]], PREFIX)
            for shard in nested_values(model_state)
            if isinstance(getattr(shard, "data", None), nn.Parameter)
        }
        return dict(sorted(shards.items()))

    def load(self, loaded: dict[int, Tensor]) -> None:
        """Restore what ``sharded_state_dict`` saved."""
        for number, average in loaded.items():
            self.averages[number].copy_(average)
