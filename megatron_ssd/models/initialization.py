"""Draws random initial weights that do not depend on the layout.

Megatron-Core draws weights rank by rank, so that one seed gives different weights for different layouts. Here each
parameter of the full model is drawn from its own stream, keyed by (seed, name, layer, expert), and every rank keeps its
slice: one process, TP2, PP2 and EP2 start with the same model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.models.gpt import GPTModel
from torch import Tensor


def initialize_weights(chunks: Sequence[GPTModel], *, seed: int, vocab_size: int) -> None:
    """Fill every parameter of this rank's ``chunks`` in place.

    Matrices are normal with ``init_method_std``, divided by sqrt(2 x layers) for those that write to the residual
    stream, as in GPT-2 and Megatron-LM. Norm weights are one, biases zero. Rows beyond ``vocab_size``, which pad a
    vocabulary (see ``models.vocabulary``), are zero.
    """
    with torch.no_grad():
        for chunk in chunks:
            for shard in local_shards(chunk):
                shard.data.copy_(_slice_of(shard, _full_parameter(shard, chunk, seed, vocab_size)))


def local_shards(chunk: GPTModel) -> Iterator[ShardedTensor]:
    """This rank's parameters, each with its name and its offset in the full parameter (views, not copies)."""
    state = chunk.sharded_state_dict()
    apply_factories(state)
    for value in nested_values(state):
        if isinstance(value, ShardedTensor):
            yield value


def _full_parameter(shard: ShardedTensor, chunk: GPTModel, seed: int, vocab_size: int) -> Tensor:
    shape = shard.global_shape[shard.prepend_axis_num :]
    if "norm" in shard.key:
        return torch.ones(shape)
    if shard.key.endswith(".bias"):
        return torch.zeros(shape)
    std = chunk.config.init_method_std
    if "linear_proj" in shard.key or "linear_fc2" in shard.key:
        std /= math.sqrt(2 * chunk.config.num_layers)
    key = (seed, shard.key, *shard.global_offset[: shard.prepend_axis_num])
    stream = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big"))
    full = torch.zeros(shape)
    # The values of a stream depend on how many are drawn, and padding depends on the layout.
    drawn = full[:vocab_size] if shard.allow_shape_mismatch else full
    drawn.normal_(0.0, std, generator=stream)
    return full


def _slice_of(shard: ShardedTensor, full: Tensor) -> Tensor:
    """The part of ``full`` that ``shard`` holds, in its local shape."""
    start = shard.global_offset[shard.prepend_axis_num :]
    size = shard.local_shape[-full.dim() :]
    part = full[tuple(slice(begin, begin + length) for begin, length in zip(start, size, strict=True))]
    return part.reshape(shard.data.shape)
