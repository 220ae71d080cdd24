"""Rotary frequencies scaled as in Llama 3.1.

Megatron-Core's ``RotaryEmbedding`` can scale, with the constants of Llama 3.1 written into it; here the configuration's
own are used, and every rank's frequencies are replaced before they are first read.

Source: transformers, ``modeling_rope_utils``, ``rope_type: llama3``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megatron_ssd.config.model import RopeScalingConfig


def scaled_frequencies(inv_freq: Tensor, scaling: RopeScalingConfig) -> Tensor:
    """``inv_freq`` in radians a token, [head_dim / 2], stretched for a longer context.

    Wavelengths below ``original / high_freq_factor`` tokens stay, those above ``original / low_freq_factor`` grow by
    ``factor``, and between the two a weight rises from the second to the first.
    """
    original = scaling.original_max_position_embeddings
    turns = original / (2 * math.pi / inv_freq)  # over the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    weight = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return torch.lerp(inv_freq / scaling.factor, inv_freq, weight)
