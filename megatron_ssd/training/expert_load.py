"""How the tokens of an iteration are spread over the experts, layer by layer.

Counts are of positions as the routers see them, prompts and padding included: in each layer they add up to the
positions of the global batch x experts per token, in any layout. A forward pass without gradients (validation, the
first pass of recomputed layers) is not counted, so that each position counts once.

Shape suffixes: L layers of the whole model, E experts of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ssd.models.routers import routers


@dataclass(frozen=True, kw_only=True)
class ExpertLoad:
    """One iteration. Loads are relative to the mean of their layer: 1 is an even spread, 0 an expert without tokens."""

    largest: float  # of all experts of all layers
    largest_layer: int  # counted from 0
    smallest: float
    smallest_layer: int
    unused: int  # experts without a token, over all layers

    def row(self) -> dict[str, Any]:
        """For a row of metrics."""
        return {
            "expert_load_max": round(self.largest, 4),
            "expert_load_max_layer": self.largest_layer,
            "expert_load_min": round(self.smallest, 4),
            "expert_load_min_layer": self.smallest_layer,
            "experts_unused": self.unused,
        }


class LoadRecorder:
    """Counts tokens for each expert as the routers of this rank assign them.

    Args:
        chunks: model chunks of this rank, of a mixture of experts.
    """

    def __init__(self, chunks: Sequence[torch.nn.Module], *, num_layers: int, num_experts: int) -> None:
        self._shape = (num_layers, num_experts)
        self._counts: dict[int, Tensor] = {}
        for router in routers(chunks):
            router.register_forward_hook(self._count)

    def start(self) -> None:
        """Forget what was counted; called before an iteration."""
        self._counts.clear()

    def counts(self) -> Tensor:
        """[L, E] tokens for each expert since ``start``, over all ranks, which must all call this; int64 on the CPU."""
        assert self._counts, "no router ran since start()"
        device = next(iter(self._counts.values())).device
        counts_LE = torch.zeros(self._shape, dtype=torch.int64, device=device)
        for layer, counts_E in self._counts.items():
            counts_LE[layer] = counts_E
        dist.all_reduce(counts_LE)
        return counts_LE.cpu()

    def load(self) -> ExpertLoad:
        """The spread since ``start``, the same on every rank; every rank must call this."""
        return spread(self.counts())

    def _count(self, router: Any, inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
        if not torch.is_grad_enabled():
            return
        _, routing_map_TE = outputs
        layer = router.layer_number - 1
        counts_E = routing_map_TE.sum(dim=0)
        self._counts[layer] = self._counts[layer] + counts_E if layer in self._counts else counts_E


def spread(counts_LE: Tensor) -> ExpertLoad:
    """What is reported of ``counts_LE``. Every layer has tokens."""
    load_LE = counts_LE / counts_LE.sum(dim=1, keepdim=True) * counts_LE.shape[1]
    num_experts = counts_LE.shape[1]
    largest, smallest = int(load_LE.argmax()), int(load_LE.argmin())
    return ExpertLoad(
        largest=float(load_LE.flatten()[largest]),
        largest_layer=largest // num_experts,
        smallest=float(load_LE.flatten()[smallest]),
        smallest_layer=smallest // num_experts,
        unused=int((counts_LE == 0).sum()),
    )
