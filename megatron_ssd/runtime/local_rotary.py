"""Computes rotary position embeddings on a CPU in few passes over memory.

Shape suffixes: S sequence, T tokens of a packed sequence, D head dimension, H half of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_ssd.runtime.packed_sequences import segment_positions


def apply_rotary_pos_emb(
    t: Tensor,
    freqs: Tensor,
    config: Any,
    cu_seqlens: Tensor | None = None,
    mscale: float = 1.0,
    cp_group: Any = None,
) -> Tensor:
    """Rotate ``t`` on a CPU, with the interface of Megatron-Core's function of the same name.

    That function takes a dozen element-wise operators per call and splits packed sequences into segments to do so. Here
    cosine and sine are computed once per batch and looked up by position, which leaves two fused products per half.

    Args:
        t: [S, batch, heads, D], or [T, heads, D] of a packed sequence.
        freqs: angles [S, 1, 1, D] with two equal halves; those of the longest segment if ``cu_seqlens`` is given.
        cu_seqlens: where the segments of a packed sequence begin and end, over all context-parallel ranks.
    """
    assert not config.rotary_interleaved, "the families built here rotate halves"
    assert freqs.shape[-1] == t.shape[-1], "the families built here rotate all of a head"
    assert mscale == 1.0, "no scaling by length is configured"
    cos, sin = _cos_sin(freqs, t.dtype) if cu_seqlens is None else _packed_cos_sin(freqs, cu_seqlens, cp_group, t.dtype)
    rotated: Tensor = _Rotate.apply(t, cos, sin)
    return rotated


def _cos_sin(freqs: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine [S, 1, 1, H], cached: Megatron-Core passes the same ``freqs`` for every layer and batch."""
    kept: tuple[Tensor, Tensor] | None = getattr(freqs, "_cos_sin", None)
    if kept is None or kept[0].dtype != dtype:
        angles = freqs[..., : freqs.shape[-1] // 2]
        kept = freqs._cos_sin = angles.cos().to(dtype), angles.sin().to(dtype)  # type: ignore[attr-defined]
    return kept


def _packed_cos_sin(freqs: Tensor, cu_seqlens: Tensor, cp_group: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine [T, 1, H] of this rank's tokens, cached per batch: all layers share its ``cu_seqlens``."""
    kept: tuple[Tensor, Tensor] | None = getattr(cu_seqlens, "_cos_sin", None)
    if kept is None or kept[0].dtype != dtype:
        lengths = tuple(cu_seqlens.diff().tolist())
        positions_T = torch.from_numpy(segment_positions(lengths, cp_size=cp_group.size(), cp_rank=cp_group.rank()))
        cos, sin = (x.flatten(0, -2)[positions_T].unsqueeze(1) for x in _cos_sin(freqs, dtype))
        kept = cu_seqlens._cos_sin = cos, sin  # type: ignore[attr-defined]
    return kept


class _Rotate(torch.autograd.Function):
    """Rotation of the two halves of the last dimension.

    With halves x1, x2 and angle a:  y1 = x1 cos a - x2 sin a,  y2 = x2 cos a + x1 sin a.  The backward pass is the
    rotation by -a.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, backwards=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (g,) = grads
        return _rotate(g, *ctx.saved_tensors, backwards=True), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, *, backwards: bool) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype)
    (x1, x2), (y1, y2) = x.chunk(2, dim=-1), y.chunk(2, dim=-1)
    sign = -1.0 if backwards else 1.0
    torch.mul(x1, cos, out=y1).addcmul_(x2, sin, value=-sign)
    torch.mul(x2, cos, out=y2).addcmul_(x1, sin, value=sign)
    return y
