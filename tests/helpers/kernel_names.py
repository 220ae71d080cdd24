"""Names of TransformerEngine's kernels in Megatron-Core, which ``TransformerConfig`` looks for."""

from __future__ import annotations

import pytest
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.transformer.moe import moe_utils

_PERMUTATION = ("permute", "permute_with_probs", "sort_chunks_by_index", "sort_chunks_by_index_with_probs", "unpermute")


def define_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let configurations with TransformerEngine's layers be made where it is not installed."""
    monkeypatch.setattr(rope_utils, "fused_apply_rotary_pos_emb", object())
    for name in _PERMUTATION:
        monkeypatch.setattr(moe_utils, f"fused_{name}", object(), raising=False)
