"""RMSNorm for the local layer spec."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm over the last dimension, with Megatron-Core's norm interface.

    Megatron-Core's own (``WrappedTorchNorm``) refuses sequence parallelism. This one marks its weight
    ``sequence_parallel``, which makes Megatron-Core add up the weight's gradients over the tensor-parallel ranks, each
    of which sees a part of the sequence (or, for query and key norms, a part of the heads).
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
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
