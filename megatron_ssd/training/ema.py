"""A running mean of the weights, which averages out the noise of single updates.

After the n-th applied update, mean(n) = decay x mean(n - 1) + (1 - decay) x weights(n), with mean(0) the weights that
training started from. It is held in fp32 beside this rank's parameters, 4 bytes each, and saved under their keys with
``ema.`` before them, so that it is resharded and exported as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from torch import Tensor, nn

PREFIX = "ema"


class EmaWeights:
    """The mean of the parameters of ``modules``, which begins as a copy of them.

    Args:
        modules: this rank's model chunks.
        decay: in (0, 1).
    """

    def __init__(self, modules: Sequence[nn.Module], decay: float) -> None:
        self._decay = decay
        self._parameters = [parameter for module in modules for parameter in module.parameters()]
        # Not ``float()`` alone, which gives fp32 parameters back as they are.
        self._means = [parameter.detach().to(torch.float32, copy=True) for parameter in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights as they are now into the mean."""
        for mean, parameter in zip(self._means, self._parameters, strict=True):
            mean.lerp_(parameter.float(), 1.0 - self._decay)

    def sharded_state_dict(self, model_state: dict[str, Any]) -> dict[int, Any]:
        """The mean as Megatron-Core's sharded tensors.

        Args:
            model_state: the sharded state of the same modules, from which the mean has its shape and place.
        """
        index = {parameter: number for number, parameter in enumerate(self._parameters)}
        shards = {
            index[shard.data]: make_sharded_optimizer_tensor(shard, self._means[index[shard.data]], PREFIX)
            for shard in nested_values(model_state)
            if isinstance(getattr(shard, "data", None), nn.Parameter)
        }
        return dict(sorted(shards.items()))

    def load(self, loaded: dict[int, Tensor]) -> None:
        """Take over what ``sharded_state_dict`` saved."""
        for number, mean in loaded.items():
            self._means[number].copy_(mean)

    def __iter__(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Pairs of parameter and mean."""
        return zip(self._parameters, self._means, strict=True)
