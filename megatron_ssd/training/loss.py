"""The SSD loss: cross-entropy summed over the response tokens.

Sums, never means, leave this module. Megatron-Core divides the gradient once by the valid tokens of the whole global
batch (``calculate_per_token_loss``), so no split into micro batches, replicas or packed rows changes the weight of a
token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from megatron_ssd.training.data import Batch

LossOutput = tuple[Tensor, Tensor, Tensor]


def forward_step(batches: Iterator[Batch], model: torch.nn.Module) -> tuple[Tensor, Callable[[Tensor], LossOutput]]:
    """Run one micro batch through ``model``; the signature is that of Megatron-Core's schedules."""
    batch = next(batches)
    token_loss_BS = model(
        batch.tokens,
        batch.position_ids,
        batch.attention_mask,
        labels=batch.labels,
        packed_seq_params=batch.packed_seq_params,
    )
    return token_loss_BS, functools.partial(summed_loss, batch.loss_mask)


def summed_loss(loss_mask_BS: Tensor, token_loss_BS: Tensor) -> LossOutput:
    """(sum over valid tokens, number of valid tokens, both of them again as [2] for the report)."""
    loss = torch.sum(token_loss_BS.float() * loss_mask_BS)
    num_tokens = loss_mask_BS.sum()
    return loss, num_tokens.to(torch.int), torch.stack([loss.detach(), num_tokens]).double()
