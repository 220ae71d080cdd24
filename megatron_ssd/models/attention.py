"""Core attention for the local layer spec, fused by PyTorch or written out.

Shape suffixes: S sequence, B micro batch, N query heads of this rank, G key/value heads of this rank, R query heads of
one key head, M = R x S, D head dimension.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

_EXPLICIT_LENGTH = 512  # longest row whose scores are written out on a CPU


class SegmentAttention(torch.nn.Module):
    """Causal attention within segments, with the interface of Megatron-Core's ``DotProductAttention``.

    Megatron-Core's own writes out the scores of every head and knows no packed rows; this one takes packed rows through
    ``attention_mask``.
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
        self.scale = softmax_scale if softmax_scale is not None else config.kv_channels**-0.5

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
        attend = _explicit_attention if q_SBND.is_cpu and q_SBND.shape[0] <= _EXPLICIT_LENGTH else _fused_attention
        return attend(q_SBND, k_SBGD, v_SBGD, attention_mask, self.scale)


def _fused_attention(
    q_SBND: Tensor, k_SBGD: Tensor, v_SBGD: Tensor, attention_mask: Tensor | None, scale: float
) -> Tensor:
    """PyTorch's kernel: the scores never exist as a whole."""
    q_BNSD, k_BGSD, v_BGSD = (x.permute(1, 2, 0, 3) for x in (q_SBND, k_SBGD, v_SBGD))
    context_BNSD = F.scaled_dot_product_attention(
        q_BNSD,
        k_BGSD,
        v_BGSD,
        attn_mask=attention_mask,
        is_causal=attention_mask is None,
        scale=scale,
        enable_gqa=q_BNSD.shape[1] != k_BGSD.shape[1],
    )
    return context_BNSD.permute(2, 0, 1, 3).flatten(2)


def _explicit_attention(
    q_SBND: Tensor, k_SBGD: Tensor, v_SBGD: Tensor, attention_mask: Tensor | None, scale: float
) -> Tensor:
    """Scores written out, for short rows on a CPU, where bf16 matrix products outrun the fused kernel three times.

    The R = N / G query heads of a key head are put one below the other, so that each key head takes one product.
    """
    S, B, N, D = q_SBND.shape
    G = k_SBGD.shape[2]
    R = N // G
    mask = _causal_mask(S, q_SBND.dtype) if attention_mask is None else attention_mask.unsqueeze(2)
    q_BGMD = (q_SBND * scale).view(S, B, G, R, D).permute(1, 2, 3, 0, 4).reshape(B, G, R * S, D)
    scores_BGRSS = torch.matmul(q_BGMD, k_SBGD.permute(1, 2, 3, 0)).view(B, G, R, S, S) + mask
    weights_BGMS = torch.softmax(scores_BGRSS, dim=-1).view(B, G, R * S, S)
    context_BGMD = torch.matmul(weights_BGMS, v_SBGD.permute(1, 2, 0, 3))
    return context_BGMD.view(B, G, R, S, D).permute(3, 0, 1, 2, 4).reshape(S, B, N * D)


@functools.lru_cache(maxsize=2)
def _causal_mask(length: int, dtype: torch.dtype) -> Tensor:
    return torch.full((length, length), float("-inf"), dtype=dtype).triu_(1)
