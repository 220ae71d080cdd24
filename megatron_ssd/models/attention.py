"""Core attention for the local layer spec, on PyTorch's ``scaled_dot_product_attention``.

Shape suffixes: S sequence, B micro batch, N query heads of this rank, G key/value heads of this rank, D head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class SegmentAttention(torch.nn.Module):
    """Causal attention within segments, with the interface of Megatron-Core's ``DotProductAttention``.

    Megatron-Core's own writes out the scores of every head and knows no packed rows; this one is fused and takes packed
    rows through ``attention_mask``.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        **unused: Any,
    ) -> None:
        super().__init__()
        assert not config.attention_dropout, "SSD trains without dropout"
        self.softmax_scale = softmax_scale

    def forward(
        self,
        q_SBND: Tensor,
        k_SBGD: Tensor,
        v_SBGD: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """Attend. ``attention_mask`` of None is plain causal attention.

        Args:
            attention_mask: [B, 1, S, S], added to the scores: 0 where a query sees a key, -inf where not (see
                ``training.data.segment_mask``). A bool mask would be turned into this one anew in every layer.

        Returns:
            [S, B, N * D].
        """
        assert packed_seq_params is None, "segments come through attention_mask here"
        q_BNSD, k_BGSD, v_BGSD = (x.permute(1, 2, 0, 3) for x in (q_SBND, k_SBGD, v_SBGD))
        context_BNSD = F.scaled_dot_product_attention(
            q_BNSD,
            k_BGSD,
            v_BGSD,
            attn_mask=None if attention_mask is None else attention_mask.to(q_BNSD.dtype),
            is_causal=attention_mask is None,
            scale=self.softmax_scale,
            enable_gqa=q_BNSD.shape[1] != k_BGSD.shape[1],
        )
        return context_BNSD.permute(2, 0, 1, 3).flatten(2)
