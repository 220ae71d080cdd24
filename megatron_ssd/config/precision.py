"""In which numbers a model computes, and what is kept of a forward pass for the backward one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_ssd.errors import require

Fp8Recipe = Literal["delayed", "tensorwise", "blockwise", "mxfp8"]


@dataclass(frozen=True, kw_only=True)
class Fp8Config:
    """FP8 matrix products by TransformerEngine; the other numbers stay as ``PrecisionConfig`` says.

    ``delayed`` scales a tensor by the largest magnitudes of earlier steps (``margin``, ``amax_history_len`` and
    ``amax_compute_algo`` belong to it alone), ``tensorwise`` by its own, ``blockwise`` block by block, ``mxfp8`` in
    groups of 32 values with the tensor cores of Blackwell.

    ``bf16_layers_at_start`` and ``bf16_layers_at_end`` leave that many layers out.
    """

    recipe: Fp8Recipe
    format: Literal["e4m3", "hybrid"] = "hybrid"  # hybrid: e5m2 for gradients
    margin: int = 0
    amax_history_len: int = 1024
    amax_compute_algo: Literal["most_recent", "max"] = "max"
    param_gather: bool = False  # weights gathered over data-parallel ranks in FP8
    bf16_layers_at_start: int = 0
    bf16_layers_at_end: int = 0

    def __post_init__(self) -> None:
        for key in ("margin", "bf16_layers_at_start", "bf16_layers_at_end"):
            value = getattr(self, key)
            require(value >= 0, f"precision.fp8.{key} = {value}", rule="must not be negative", fix="use 0")
        require(self.amax_history_len > 0, f"precision.fp8.amax_history_len = {self.amax_history_len}",
                rule="must be at least 1", fix="1024 is TransformerEngine's default")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """Numbers that weights, activations and gradients are held in; ``fp8`` of null means no FP8 products.

    ``recompute`` trades time for memory: ``selective`` computes core attention again in the backward pass, ``full``
    whole layers.
    """

    params_dtype: Literal["fp32", "bf16"] = "bf16"
    fast_matmul: bool = False  # fp32 products rounded to bf16 inside, where the processor has units for it
    recompute: Literal["none", "selective", "full"] = "none"
    transformer_engine: bool = True  # TransformerEngine's layers; false for Megatron-Core's own
    fp8: Fp8Config | None = None

    def __post_init__(self) -> None:
        require(
            self.fp8 is None or self.transformer_engine,
            "precision.transformer_engine = false",
            rule="FP8 products are TransformerEngine's",
            fix="set precision.transformer_engine=true or precision.fp8=null",
        )
        require(
            self.fp8 is None or self.params_dtype == "bf16",
            f"precision.params_dtype = {self.params_dtype}",
            rule="FP8 products go with bf16 weights",
            fix="set precision.params_dtype=bf16 or precision.fp8=null",
        )
