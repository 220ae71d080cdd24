"""Predicts the memory of one GPU from the number of parameters that its rank holds.

The dry run counts the parameters. The rest are formulas:

=============  =========================================================================================================
weights        parameters x 2 bytes (bf16) or 4 (fp32)
FP8 weights    of every product in FP8 layers, next to the bf16 ones: one row-wise and one column-wise copy, kept over
               micro batches, 1 byte each, with scales
gradients      parameters x 4 bytes, or 2 with optimizer.main_grads_dtype=bf16: all of them on every rank
optimizer      fp32 copy (bf16 training) and two moments, 12 bytes per parameter. The distributed optimizer shards them
               over the data-parallel ranks (experts: over the ranks that hold the same experts). precision_aware
               narrows each; with bf16 weights it keeps only the lower 16 bits of an fp32 copy
EMA            parameters x 4 bytes
activations    what the layers keep for the backward pass x micro batches in flight on the pipeline stage
working set    what the widest layer needs at once in the backward pass, exchange of tokens included
logits         on the last stage, in bf16: 2 bytes x vocabulary / tensor size; without cross_entropy_loss_fusion 4 more
               for the fp32 softmax; and the last norm's input and output. They are never there beside the working set:
               the loss and its gradient are done before the last layer's backward pass begins
reserve        CUDA context, NCCL, cuBLAS and TransformerEngine workspaces, allocator: an assumption, see below
=============  =========================================================================================================

Activations are listed tensor by tensor, as autograd keeps them: bytes per token of a micro batch on one rank, and the
recompute modules that would drop the tensor. There are two lists. The one for Megatron-Core's own layers is tested
against what autograd saves on a CPU. The one for TransformerEngine's layers comes from reading its source and that of
Megatron-Core.

The expert load ``IMBALANCE`` is an assumption. The sum has been compared with runs on one GPU, for the cases in
``MEASURED`` only.

Letters: h hidden size, q and g widths of all query and of all key heads of a rank, f feed-forward width of a rank,
sp ranks that share a sequence outside of attention (tensor size under sequence parallelism, or 1).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from megatron_ssd.config.model import ModelConfig, MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import Fp8Config, PrecisionConfig, RecomputeModule
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.config.training import OptimizerConfig
from megatron_ssd.planner.layout import LayoutReport, RankReport

GB = 1e9  # as data sheets count
RESERVE = 5 * GB  # about 1 for the CUDA context, 1 to 2 for NCCL's buffers; the rest for allocator fragmentation
IMBALANCE = 1.2  # tokens of the busiest rank's experts over the mean

_FP32 = 4
_BYTES = {"fp32": _FP32, "bf16": 2, "fp16": 2, "fp8": 1}


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes on one rank, by part."""

    weights: float
    fp8_weights: float
    gradients: float
    optimizer: float
    ema: float
    activations: float
    working_set: float
    logits: float
    reserve: float = RESERVE

    @property
    def rest(self) -> float:
        """What comes and goes within a micro batch: the logits or the working set, whichever is more."""
        return max(self.working_set, self.logits)

    @property
    def total(self) -> float:
        """The peak of an iteration."""
        parts = float(sum(getattr(self, field.name) for field in fields(self)))
        return parts - min(self.working_set, self.logits)


def worst_rank(config: RunConfig, layout: LayoutReport) -> RankMemory:
    """The memory of the rank that needs the most."""
    return max(all_ranks(config, layout), key=lambda memory: memory.total)


def all_ranks(config: RunConfig, layout: LayoutReport) -> Iterable[RankMemory]:
    """The memory of every rank of ``layout``, which was built from this configuration."""
    model = needed(config.model, "model")
    return [_rank_memory(config, model, rank) for rank in layout.ranks]


def _rank_memory(config: RunConfig, model: ModelConfig, rank: RankReport) -> RankMemory:
    parallel, precision, optimizer = config.parallel, config.precision, config.optimizer
    tokens = config.training.micro_batch_tokens // parallel.context_parallel_size
    tensors = layer_tensors(model, parallel, precision, config.moe)
    kept = kept_bytes(tensors, precision, imbalance=IMBALANCE)
    working = working_bytes(model, parallel, precision, config.moe, imbalance=IMBALANCE)
    layers = layers_in_flight(
        model, parallel, stage=rank.pipeline_rank,
        num_microbatches=config.training.num_microbatches(parallel.data_parallel_size),
    )  # fmt: skip
    is_last = rank.pipeline_rank == parallel.pipeline_model_parallel_size - 1
    trained = rank.num_parameters - rank.num_frozen_parameters
    return RankMemory(
        weights=rank.num_parameters * _BYTES[precision.params_dtype],
        fp8_weights=_num_fp8_weights(rank, precision.fp8) * _fp8_weight_bytes(precision.fp8),
        gradients=trained * _BYTES[optimizer.main_grads_dtype],
        optimizer=optimizer_bytes(rank, parallel, optimizer, params_dtype=precision.params_dtype),
        ema=0.0 if config.training.ema_decay is None else rank.num_parameters * 4.0,
        activations=tokens * kept * layers,
        working_set=tokens * working,
        logits=tokens * _logit_bytes(model, parallel, precision) if is_last else 0.0,
    )


def optimizer_bytes(
    rank: RankReport, parallel: ParallelConfig, optimizer: OptimizerConfig, *, params_dtype: str
) -> float:
    """Bytes of this rank's optimizer state on the device."""
    dense_ranks, expert_ranks = replicas(parallel) if parallel.use_distributed_optimizer else (1, 1)
    experts = rank.num_expert_parameters
    dense = rank.num_parameters - rank.num_frozen_parameters - experts
    share = dense / dense_ranks + experts / expert_ranks
    return share * _state_bytes(optimizer, params_dtype) * (1 - optimizer.cpu_offload_fraction)


def replicas(parallel: ParallelConfig) -> tuple[int, int]:
    """How many ranks hold the same weights outside of experts, and the same experts."""
    holders_of_experts = (
        parallel.expert_model_parallel_size
        * parallel.expert_tensor_parallel_size
        * parallel.pipeline_model_parallel_size
    )
    return (
        parallel.data_parallel_size * parallel.context_parallel_size,
        parallel.world_size // holders_of_experts,
    )


def _state_bytes(optimizer: OptimizerConfig, params_dtype: str) -> int:
    """Bytes of optimizer state per parameter."""
    moments = _BYTES[optimizer.exp_avg_dtype] + _BYTES[optimizer.exp_avg_sq_dtype]
    if params_dtype == "fp32":
        return moments  # the parameter is its own fp32 copy
    remainder_only = optimizer.precision_aware and optimizer.main_params_dtype == "fp32"
    return moments + (2 if remainder_only else _BYTES[optimizer.main_params_dtype])


def _num_fp8_weights(rank: RankReport, fp8: Fp8Config | None) -> int:
    if fp8 is None:
        return 0
    layers = rank.num_product_weights
    return sum(layers[fp8.bf16_layers_at_start : len(layers) - fp8.bf16_layers_at_end])


def _fp8_weight_bytes(fp8: Fp8Config | None) -> float:
    if fp8 is None:
        return 0.0
    # MXFP8 has a scale of one byte per 32 values, blockwise an fp32 scale per 128 x 128 block, the others per tensor.
    scale = {"mxfp8": 1 / 32, "blockwise": 4 / 128**2}.get(fp8.recipe, 0.0)
    return 2 * (1 + scale)


def layers_in_flight(model: ModelConfig, parallel: ParallelConfig, *, stage: int, num_microbatches: int) -> int:
    """The most layers x micro batches that pipeline stage ``stage`` holds for the backward pass.

    1F1B: stage r of p starts p - r micro batches before its first backward pass. Interleaved over v virtual stages:
    2 (p - r - 1) + (v - 1) p + 1 chunks (Megatron-Core's ``get_pp_rank_microbatches``).
    """
    p, v = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    if v is None:
        return min(p - stage, num_microbatches) * model.num_hidden_layers // p
    chunks = 2 * (p - stage - 1) + (v - 1) * p + 1
    return min(chunks, num_microbatches * v) * model.num_hidden_layers // (p * v)


def _logit_bytes(model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig) -> float:
    """Per token: logits, their fp32 softmax, and what the last norm and the output layer keep.

    TransformerEngine's fused loss keeps no softmax: it writes the gradient where the logits were.
    """
    value = _BYTES[precision.params_dtype]
    tp = parallel.tensor_model_parallel_size
    sp = tp if parallel.sequence_parallel else 1
    softmax = value + 4 if value < 4 else 4
    vocabulary = value if precision.fuses_cross_entropy else softmax
    return model.vocab_size / tp * vocabulary + 2 * model.hidden_size * value / sp


@dataclass(frozen=True)
class Kept:
    """One tensor: bytes per token, and the modules whose recomputation drops it."""

    name: str
    bytes_per_token: float
    dropped_by: tuple[RecomputeModule, ...] = ()
    is_routed: bool = False  # scales with the load of the experts


@dataclass(frozen=True)
class Widths:
    """Sizes of one layer on one rank, by the letters of the module."""

    h: int
    q: int
    g: int
    heads: int
    f: int
    routed: float  # tokens at this rank's experts per token, if evenly spread; 0 without experts
    sp: int
    value_bytes: int  # of weights and activations
    product_bytes: float  # of the input that a matrix product keeps

    @classmethod
    def of(cls, model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig) -> Widths:
        """Widths of ``model`` under ``parallel``."""
        tp, etp = parallel.tensor_model_parallel_size, parallel.expert_tensor_parallel_size
        sp = tp if parallel.sequence_parallel else 1
        value_bytes = 2 if precision.params_dtype == "bf16" else _FP32
        f, routed = model.intermediate_size // tp, 0.0
        if model.is_moe:
            assert model.moe_intermediate_size is not None
            assert model.num_experts_per_tok is not None
            f, routed = model.moe_intermediate_size // etp, model.num_experts_per_tok * etp / sp
        return cls(
            h=model.hidden_size,
            q=model.num_attention_heads * model.head_dim // tp,
            g=model.num_key_value_heads * model.head_dim // tp,
            heads=model.num_attention_heads // tp,
            f=f,
            routed=routed,
            sp=sp,
            value_bytes=value_bytes,
            product_bytes=_fp8_bytes(precision) or value_bytes,
        )


def _fp8_bytes(precision: PrecisionConfig) -> float | None:
    """Bytes of an FP8 value with its share of the scale: one byte per group of 32, or fp32 per block of 128."""
    if precision.fp8 is None:
        return None
    return 1 + {"mxfp8": 1 / 32, "blockwise": _FP32 / 128}.get(precision.fp8.recipe, 0.0)


def layer_tensors(
    model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig, moe: MoeConfig
) -> tuple[Kept, ...]:
    """What one layer keeps without recomputation."""
    w = Widths.of(model, parallel, precision)
    attention = _attention(w, has_qk_norm=model.has_qk_norm, fused=precision.transformer_engine)
    if parallel.context_parallel_size > 1 and parallel.cp_comm_type == "a2a":
        # TransformerEngine's AttnFuncWithCPAndQKVOA2A saves its output as it is before the exchange, too.
        attention = (*attention, Kept("core attention: output before the exchange", w.q * w.value_bytes))
    if model.num_experts is None:
        return (*attention, *_dense(w, fused=precision.transformer_engine))
    grouped = precision.transformer_engine and moe.grouped_gemm
    experts = _experts(w, num_experts=model.num_experts, grouped=grouped, fused=precision.transformer_engine)
    return (*attention, *experts)


def _attention(w: Widths, *, has_qk_norm: bool, fused: bool) -> tuple[Kept, ...]:
    """Norm, query-key-value product, norms of queries and keys, rotation, core attention, output product.

    Queries are always copied out of the product for their norm, since their heads are not contiguous in it. Local
    layers keep the product for keys and values, which are views of it. TransformerEngine's norm and attention copy both
    (``rmsnorm.py``: ``input_.contiguous()``; ``get_qkv_layout`` makes strided values contiguous), so nothing keeps the
    product.
    """
    b = w.value_bytes
    tensors = [
        Kept("attention norm: input", w.h * b / w.sp),
        Kept("attention norm: output", w.h * w.product_bytes / w.sp, () if fused else ("layernorm",)),
        Kept("rotated queries and keys", (w.q + w.g) * b),
        Kept("core attention: output", w.q * b),
        Kept("core attention: logarithms of sums", w.heads * _FP32, ("core_attn",)),
    ]
    if has_qk_norm:
        tensors.append(Kept("queries before their norm", w.q * b))
    if not fused:
        tensors.append(Kept("query-key-value product, of which keys and values are views", (w.q + 2 * w.g) * b))
    else:
        tensors.append(Kept("values", w.g * b))
        if has_qk_norm:
            tensors.append(Kept("keys before their norm", w.g * b))
    if w.product_bytes != b:
        tensors.append(Kept("output product: FP8 input", w.q * w.product_bytes))
    return tuple(tensors)


def _dense(w: Widths, *, fused: bool) -> tuple[Kept, ...]:
    """Norm, gate and up product, SwiGLU, down product. Unfused SwiGLU also keeps both factors of its product."""
    b = w.value_bytes
    mlp: tuple[RecomputeModule, ...] = ("mlp",)
    return (
        Kept("feed-forward norm: input", w.h * b / w.sp),
        Kept("feed-forward norm: output", w.h * w.product_bytes / w.sp, mlp if fused else ("layernorm",)),
        Kept("gate and up", 2 * w.f * b, mlp),
        Kept("SwiGLU: output", w.f * w.product_bytes, mlp),
        *(() if fused else (Kept("SwiGLU: its factors", 2 * w.f * b, mlp),)),
    )


def _experts(w: Widths, *, num_experts: int, grouped: bool, fused: bool) -> tuple[Kept, ...]:
    """Norm, router, exchange of tokens, each expert's SwiGLU."""
    b = w.value_bytes
    moe: tuple[RecomputeModule, ...] = ("moe",)
    act: tuple[RecomputeModule, ...] = ("moe", "moe_act") if grouped else moe
    # Scores and probabilities in fp32, the assignment as bytes.
    router = num_experts * (3 * _FP32 + 1)
    tensors = [
        Kept("feed-forward norm: input", w.h * b / w.sp),
        Kept("feed-forward norm: output", w.h * b / w.sp, ("layernorm",)),
        Kept("router", router / w.sp, moe),
        Kept("experts: input", w.routed * w.h * w.product_bytes, moe, is_routed=True),
        Kept("experts: gate and up", w.routed * 2 * w.f * b, moe, is_routed=True),
        Kept("experts: SwiGLU output", w.routed * w.f * w.product_bytes, act, is_routed=True),
    ]
    if not fused:
        # Both factors of the product, and the product before it is multiplied by the router's probability.
        tensors.append(Kept("experts: SwiGLU inside", w.routed * 3 * w.f * b, moe, is_routed=True))
    return tuple(tensors)


def kept_bytes(tensors: tuple[Kept, ...], precision: PrecisionConfig, *, imbalance: float = 1.0) -> float:
    """Bytes per token that one layer keeps under ``precision.recompute``.

    Args:
        imbalance: tokens of the busiest rank's experts over the mean.
    """
    if precision.recompute == "full":
        return tensors[0].bytes_per_token  # the layer's input, from which everything is recomputed
    dropped = set(precision.recompute_modules) if precision.recompute == "selective" else set()
    return sum(
        tensor.bytes_per_token * (imbalance if tensor.is_routed else 1.0)
        for tensor in tensors
        if dropped.isdisjoint(tensor.dropped_by)
    )


def working_bytes(
    model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig, moe: MoeConfig, *, imbalance: float = 1.0
) -> float:
    """Bytes per token that a layer needs in addition to what it keeps: gradients in flight, exchange buffers.

    The widest moment of the backward pass: gradients of the products' inputs and outputs, and for experts the tokens
    before and after the exchange. Recomputed tensors count too.
    """
    w = Widths.of(model, parallel, precision)
    tensors = layer_tensors(model, parallel, precision, moe)
    rebuilt = sum(tensor.bytes_per_token * (imbalance if tensor.is_routed else 1.0) for tensor in tensors)
    rebuilt -= kept_bytes(tensors, precision, imbalance=imbalance)
    if model.is_moe:
        return rebuilt + w.routed * imbalance * (3 * w.h + 3 * w.f) * w.value_bytes
    return rebuilt + (2 * w.h + 3 * w.f) * w.value_bytes
