"""Computes RMSNorm or rotary position embeddings without TransformerEngine, on a CPU in few passes over memory.

Shape suffixes: S sequence, T tokens of a packed sequence, D head dimension, H half of it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_ssd.runtime.packed_sequences import segment_positions


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm over the last dimension, with Megatron-Core's norm interface.

    Megatron-Core's own (``WrappedTorchNorm``) does not support sequence parallelism. This one marks its weight
    ``sequence_parallel``, so that Megatron-Core sums the weight's gradients over the tensor-parallel ranks, each of
    which has a part of the sequence (or, for query and key norms, a part of the heads).
    """

    def __init__(
        self,
        config: TransformerConfig,
        hidden_size: int,
        eps: float = 1e-6,
        persist_layer_norm: bool = False,
        zero_centered_gamma: bool = False,
        normalization: str = "RMSNorm",
    ) -> None:
        super().__init__()
        assert config.normalization == "RMSNorm", config.normalization
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """``x`` of any shape [..., hidden_size], normalised and scaled; same shape and dtype."""
        if x.is_cpu:
            y: Tensor = _FewPassesRMSNorm.apply(x, self.weight, self.eps)
            return y
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class _FewPassesRMSNorm(torch.autograd.Function):
    """Computes ``F.rms_norm`` in fewer passes over memory.

    PyTorch has no fused kernel for it on CPUs and takes about a dozen element-wise passes. These are six, and twice as
    fast.
    With r = 1 / rms(x), u = x r and the gradient g of y = u w:  dw = sum(g u),  dx = r (g w - u mean(g w u)).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        r = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)
        ctx.save_for_backward(x, weight, r)
        y: Tensor = (x * r).mul_(weight)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (g,) = grads
        x, weight, r = ctx.saved_tensors
        u = x * r
        gu = g * u
        dw = gu.flatten(0, -2).sum(0)
        along = torch.linalg.vecdot(gu, weight).unsqueeze_(-1).div_(x.shape[-1])
        dx = (g * weight).sub_(u.mul_(along)).mul_(r)
        return dx, dw, None


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
