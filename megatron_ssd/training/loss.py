"""The SSD loss: cross-entropy, weighted by position and summed.

Sums, never means, leave this module. Loss and gradient are divided once, by the weight of the whole global batch
(``BatchSource.normalizer``, ``training.optimizer.normalize_gradients``), so no split into micro batches, replicas or
packed rows changes what a token or a sample weighs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from megatron_ssd.training.data import Batch

LossOutput = tuple[Tensor, Tensor, Tensor]


def forward_step(batches: Iterator[Batch], model: torch.nn.Module) -> tuple[Tensor, Callable[[Tensor], LossOutput]]:
    """Run one micro batch through ``model``; the signature is that of Megatron-Core's schedules.

    BS stands for the shape of the batch's tensors.
    """
    batch = next(batches)
    token_loss_BS = model(
        batch.tokens,
        batch.position_ids,
        None,  # attention is causal within rows or segments
        labels=batch.labels,
        packed_seq_params=batch.packed_seq_params,
    )
    return token_loss_BS, functools.partial(weighted_sum, batch.loss_weights)


def weighted_sum(loss_weights_BS: Tensor, token_loss_BS: Tensor) -> LossOutput:
    """(weighted sum, number of positions that weigh anything, both of them again as [2] for the report)."""
    loss = torch.sum(token_loss_BS.float() * loss_weights_BS)
    num_tokens = torch.count_nonzero(loss_weights_BS)
    return loss, num_tokens.to(torch.int), torch.stack([loss.detach(), num_tokens]).double()
