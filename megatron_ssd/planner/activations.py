"""Bytes that a forward pass keeps for its backward pass, tensor by tensor. Pure.

A layer is a list of the tensors that autograd holds, each with its bytes for one position of a micro batch on one rank
and with the recompute modules that would drop it. There are two lists: of Megatron-Core's own layers, which the tests
hold against what autograd really saves on a CPU, and of TransformerEngine's, which are read from its and
Megatron-Core's source and have not been measured yet.

Letters: h hidden size, q and g widths of all query and of all key heads of a rank, f feed-forward width of a rank,
k experts per token, sp ranks that share a sequence outside of attention (tensor size under sequence parallelism, or 1).
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ssd.config.model import ModelConfig, MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig, RecomputeModule

_FP32 = 4


@dataclass(frozen=True)
class Kept:
    """One tensor: bytes for a position, and the modules whose recomputation drops it."""

    name: str
    bytes_per_token: float
    dropped_by: frozenset[RecomputeModule] = frozenset()
    is_routed: bool = False  # follows the load of the experts


@dataclass(frozen=True)
class Widths:
    """Sizes of one layer on one rank."""

    h: int
    q: int
    g: int
    heads: int
    sp: int
    value_bytes: int  # of weights and activations
    product_bytes: float  # of what a matrix product keeps of its input

    @classmethod
    def of(cls, model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig) -> Widths:
        """Widths of ``model`` under ``parallel``."""
        tp = parallel.tensor_model_parallel_size
        value_bytes = 2 if precision.params_dtype == "bf16" else _FP32
        return cls(
            h=model.hidden_size,
            q=model.num_attention_heads * model.head_dim // tp,
            g=model.num_key_value_heads * model.head_dim // tp,
            heads=model.num_attention_heads // tp,
            sp=tp if parallel.sequence_parallel else 1,
            value_bytes=value_bytes,
            product_bytes=_fp8_bytes(precision) or value_bytes,
        )


def _fp8_bytes(precision: PrecisionConfig) -> float | None:
    """Of one FP8 value with its share of a scale: one a group of 32 (a byte) or a block of 128 (fp32)."""
    if precision.fp8 is None:
        return None
    return 1 + {"mxfp8": 1 / 32, "blockwise": _FP32 / 128}.get(precision.fp8.recipe, 0.0)


def layer_tensors(
    model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig, moe: MoeConfig
) -> tuple[Kept, ...]:
    """What one layer keeps without recomputation."""
    w = Widths.of(model, parallel, precision)
    attention = _attention(w, has_qk_norm=model.has_qk_norm, fused=precision.transformer_engine)
    if not model.is_moe:
        f = model.intermediate_size // parallel.tensor_model_parallel_size
        return (*attention, *_dense(w, f, fused=precision.transformer_engine))
    assert model.moe_intermediate_size is not None
    assert model.num_experts is not None
    assert model.num_experts_per_tok is not None
    etp = parallel.expert_tensor_parallel_size
    routed = model.num_experts_per_tok * etp / w.sp  # rows at this rank's experts for each position, evenly spread
    grouped = precision.transformer_engine and moe.grouped_gemm
    return (
        *attention,
        *_experts(w, model.moe_intermediate_size // etp, routed, num_experts=model.num_experts, grouped=grouped,
                  fused=precision.transformer_engine),
    )  # fmt: skip


def _attention(w: Widths, *, has_qk_norm: bool, fused: bool) -> tuple[Kept, ...]:
    """Norm, query-key-value product, norms of queries and keys, rotation, core attention, output product."""
    b, core = w.value_bytes, frozenset[RecomputeModule]({"core_attn"})
    layernorm = frozenset[RecomputeModule]() if fused else frozenset[RecomputeModule]({"layernorm"})
    tensors = [
        Kept("attention norm: input", w.h * b / w.sp),
        Kept("attention norm: output", w.h * w.product_bytes / w.sp, layernorm),
        Kept("query-key-value product, of which values are a view", (w.q + 2 * w.g) * b),
        Kept("rotated queries and keys", (w.q + w.g) * b),
        Kept("core attention: output", w.q * b),
        Kept("core attention: logarithms of sums", w.heads * _FP32, core),
    ]
    if has_qk_norm:
        tensors.append(Kept("queries before their norm", w.q * b))  # keys are a view
    if w.product_bytes != b:
        tensors.append(Kept("output product: FP8 input", w.q * w.product_bytes))
    return tuple(tensors)


def _dense(w: Widths, f: int, *, fused: bool) -> tuple[Kept, ...]:
    """Norm, gate and up product, SwiGLU, down product. Unfused SwiGLU keeps both factors of its product as well."""
    b, mlp = w.value_bytes, frozenset[RecomputeModule]({"mlp"})
    norm = mlp if fused else frozenset[RecomputeModule]({"layernorm"})
    return (
        Kept("feed-forward norm: input", w.h * b / w.sp),
        Kept("feed-forward norm: output", w.h * w.product_bytes / w.sp, norm),
        Kept("gate and up", 2 * f * b, mlp),
        Kept("SwiGLU: output", f * w.product_bytes, mlp),
        *(() if fused else (Kept("SwiGLU: its factors", 2 * f * b, mlp),)),
    )


def _experts(w: Widths, f: int, routed: float, *, num_experts: int, grouped: bool, fused: bool) -> tuple[Kept, ...]:
    """Norm, router, exchange of tokens, each expert's SwiGLU."""
    b, again = w.value_bytes, frozenset[RecomputeModule]({"moe"})
    act = again | frozenset[RecomputeModule]({"moe_act"}) if grouped else again
    # Scores and probabilities in fp32, the assignment as bytes.
    router = num_experts * (3 * _FP32 + 1)
    tensors = [
        Kept("feed-forward norm: input", w.h * b / w.sp),
        Kept("feed-forward norm: output", w.h * b / w.sp, frozenset[RecomputeModule]({"layernorm"})),
        Kept("router", router / w.sp, again),
        Kept("experts: input", routed * w.h * w.product_bytes, again, is_routed=True),
        Kept("experts: gate and up", routed * 2 * f * b, again, is_routed=True),
        Kept("experts: SwiGLU output", routed * f * w.product_bytes, act, is_routed=True),
    ]
    if not fused:
        # Both factors of the product, and the product before it is multiplied by the router's probability.
        tensors.append(Kept("experts: SwiGLU inside", routed * 3 * f * b, again, is_routed=True))
    return tuple(tensors)


def kept_bytes(tensors: tuple[Kept, ...], precision: PrecisionConfig, *, imbalance: float = 1.0) -> float:
    """Bytes for a position that one layer keeps under ``precision.recompute``.

    Args:
        imbalance: tokens of the busiest rank's experts over the mean.
    """
    if precision.recompute == "full":
        return tensors[0].bytes_per_token  # the layer's input, from which all is computed again
    dropped = set(precision.recompute_modules) if precision.recompute == "selective" else set()
    return sum(
        tensor.bytes_per_token * (imbalance if tensor.is_routed else 1.0)
        for tensor in tensors
        if not dropped & tensor.dropped_by
    )


def working_bytes(
    model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig, moe: MoeConfig, *, imbalance: float = 1.0
) -> float:
    """Bytes for a position that a layer needs at once beside what is kept: gradients in flight, exchange buffers.

    The widest moment of the backward pass: gradients of the products' inputs and outputs, and for experts the tokens
    before and after the exchange. What is computed again adds what it rebuilds.
    """
    w = Widths.of(model, parallel, precision)
    tensors = layer_tensors(model, parallel, precision, moe)
    rebuilt = sum(tensor.bytes_per_token * (imbalance if tensor.is_routed else 1.0) for tensor in tensors)
    rebuilt -= kept_bytes(tensors, precision, imbalance=imbalance)
    if model.is_moe:
        assert model.moe_intermediate_size is not None
        assert model.num_experts_per_tok is not None
        etp = parallel.expert_tensor_parallel_size
        routed = model.num_experts_per_tok * etp / w.sp * imbalance
        return rebuilt + routed * (3 * w.h + 3 * model.moe_intermediate_size // etp) * w.value_bytes
    f = model.intermediate_size // parallel.tensor_model_parallel_size
    return rebuilt + (2 * w.h + 3 * f) * w.value_bytes
