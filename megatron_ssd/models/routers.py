"""The routers of a mixture of experts: finding them, freezing them, weighing their auxiliary loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from megatron.core.transformer.moe.router import TopKRouter

from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.runtime.versions import aux_loss_counts_all_ranks


def routers(chunks: Iterable[torch.nn.Module]) -> Iterator[TopKRouter]:
    """The routers of this rank, by layer; none for a dense model."""
    for chunk in chunks:
        yield from (module for module in chunk.modules() if isinstance(module, TopKRouter))


def freeze_routers(chunks: Iterable[torch.nn.Module]) -> None:
    """Take the routing weights out of training. They are loaded, saved and exported all the same."""
    for router in routers(chunks):
        router.weight.requires_grad_(False)


def set_aux_loss_coefficient(
    chunks: Iterable[torch.nn.Module],
    coefficient: float,
    parallel: ParallelConfig,
    *,
    normalizer: float,
    num_tokens: int,
) -> None:
    """Make the auxiliary loss of the next iteration ``coefficient`` times its mean over micro batches.

    With ``calculate_per_token_loss`` Megatron-Core's router multiplies its loss by positions, in 0.16 by those that it
    sees, one of tensor x context parts of a micro batch, and expects the gradient to be divided by all positions. Here
    it is divided by ``normalizer``, which may be anything. The coefficient is read at every forward pass, so it is put
    right there.

    Args:
        normalizer: what the gradient of this iteration is divided by.
        num_tokens: of the global batch, padding included.
    """
    parts = 1 if aux_loss_counts_all_ranks() else parallel.tensor_model_parallel_size * parallel.context_parallel_size
    for router in routers(chunks):
        router.config.moe_aux_loss_coeff = coefficient * normalizer * parts / num_tokens
