"""Computes RMSNorm without TransformerEngine, on a CPU in few passes over memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


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
