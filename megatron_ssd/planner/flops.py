"""Counts the floating point operations of a training step, to be compared with the peak of a GPU.

A product of [m, k] and [k, n] is 2 m k n operations; its backward pass takes two such products. Only matrix products
count: projections, scores and weighted values of attention, router, experts, output layer. Norms, softmax, activations
and rotary embedding (below one per cent at these widths) do not count. Recomputation does not count either, so that
utilisation by this count is that of useful work.

Attention is counted as the causal half, with the diagonal, per packed segment: n (n + 1) / 2 pairs of a query and a key
for a segment of n tokens. Of a mixture of experts, only the experts that a token is routed to count.

For example, one token of Qwen3-30B-A3B: a layer's projections hold 2048 x (4096 + 2 x 512) + 4096 x 2048 = 18.9 M
weights, its router 0.26 M, its eight experts 8 x 3 x 2048 x 768 = 37.7 M; 48 layers and the output layer of 311 M make
3.04 G weights, 18.2 GFLOP forward and backward, without attention's pairs.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from megatron_ssd.config.model import ModelConfig

_PASSES = 3  # one forward and two backward, in products of the same size


def flops_of(model: ModelConfig, segment_lengths: Iterable[int]) -> float:
    """Operations, forward and backward, for segments of these lengths, each causal within itself.

    Args:
        segment_lengths: tokens of each segment. Leave out padding to count useful work only.
    """
    return float(flops_by_segment(model, np.fromiter(segment_lengths, dtype=np.int64)).sum())


def flops_by_segment(model: ModelConfig, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Operations of each segment, forward and backward. Both shapes are [segments]."""
    tokens = lengths.astype(np.float64)
    pairs = tokens * (tokens + 1) / 2
    return _PASSES * (2.0 * active_weights(model) * tokens + _operations_per_pair(model) * pairs)


def active_weights(model: ModelConfig) -> int:
    """Weights that one token is multiplied by: without the embedding (a look-up) and the experts not chosen."""
    q_size = model.num_attention_heads * model.head_dim
    kv_size = model.num_key_value_heads * model.head_dim
    projections = model.hidden_size * (2 * q_size + 2 * kv_size)
    if model.num_experts is not None:
        assert model.num_experts_per_tok is not None
        assert model.moe_intermediate_size is not None
        experts = model.num_experts_per_tok * 3 * model.hidden_size * model.moe_intermediate_size
        feed_forward = model.hidden_size * model.num_experts + experts
    else:
        feed_forward = 3 * model.hidden_size * model.intermediate_size
    return model.num_hidden_layers * (projections + feed_forward) + model.hidden_size * model.vocab_size


def _operations_per_pair(model: ModelConfig) -> float:
    """Forward operations for one query and one key that it sees: a score and a weighted value in every head."""
    return 2.0 * 2 * model.num_attention_heads * model.head_dim * model.num_hidden_layers
