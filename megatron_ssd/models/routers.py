"""Controls how the routers of a mixture of experts are trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from megatron.core.transformer.moe.router import TopKRouter

from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.runtime.versions import aux_loss_counts_all_ranks


def routers(chunks: Iterable[torch.nn.Module]) -> Iterator[TopKRouter]:
    """This rank's routers in layer order; none for a dense model."""
    for chunk in chunks:
        yield from (module for module in chunk.modules() if isinstance(module, TopKRouter))


def freeze_routers(chunks: Iterable[torch.nn.Module]) -> None:
    """Exclude the routing weights from training. They are still loaded, saved and exported."""
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

    With ``calculate_per_token_loss`` Megatron-Core's router multiplies its loss by a number of tokens (in 0.16 those of
    its own rank, one of tensor x context parts of a micro batch) and expects the gradient to be divided by the tokens
    of all ranks. Here the gradient is divided by ``normalizer``. The router reads the coefficient in every forward
    pass, so it is the value to correct.

    Args:
        normalizer: divisor of this iteration's gradient.
        num_tokens: of the global batch, padding included.
    """
    parts = 1 if aux_loss_counts_all_ranks() else parallel.tensor_model_parallel_size * parallel.context_parallel_size
    for router in routers(chunks):
        router.config.moe_aux_loss_coeff = coefficient * normalizer * parts / num_tokens
