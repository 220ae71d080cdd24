"""Translates this project's configuration to Megatron-Core's ``TransformerConfig``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_ssd.config.model import ModelConfig, MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.runtime.process_groups import model_parallel_sizes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def transformer_config(
    model: ModelConfig,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    moe: MoeConfig = MoeConfig(),  # noqa: B008 - frozen
) -> TransformerConfig:
    """Shape, layout and precision of one model in Megatron-Core's form.

    All supported models have pre-norm RMSNorm, SwiGLU, grouped-query attention, rotary embedding, no dropout, and no
    bias except in the projections of queries, keys and values. The loss is a sum over tokens
    (``calculate_per_token_loss``), so Megatron-Core does not average: ``normalize_gradients`` of training divides once,
    by the weight of the global batch.
    """
    dtype = DTYPES[precision.params_dtype]
    interleaved = parallel.virtual_pipeline_model_parallel_size is not None
    return TransformerConfig(
        num_layers=model.num_hidden_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.intermediate_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_key_value_heads,
        kv_channels=model.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=model.rms_norm_eps,
        qk_layernorm=model.has_qk_norm,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=model.has_qkv_bias,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        attention_softmax_in_fp32=True,
        init_method_std=model.initializer_range,
        # models.initialization draws the weights, the same for every layout. Megatron-Core's own step must still run:
        # it marks the parameters that tensor parallelism splits, which gradient norm and clipping rely on.
        init_method=_leave_unset,
        output_layer_init_method=_leave_unset,
        embedding_init_method=_leave_unset,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=precision.params_dtype == "bf16",
        sequence_parallel=parallel.sequence_parallel,
        calculate_per_token_loss=True,
        # Interleaved stages on two ranks need it: one batch would mix up the sends to "next" and to "previous".
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        cuda_graph_scope=[],
        gradient_accumulation_fusion=False,  # see models.fused_gradients
        cp_comm_type=parallel.cp_comm_type,
        **model_parallel_sizes(parallel),
        **_experts(model, moe),
        **_recompute(precision),
        **_fp8(precision),
        **_fusions(model, precision, moe),
    )


def _leave_unset(weight: Tensor) -> Tensor:
    return weight


def _experts(model: ModelConfig, moe: MoeConfig) -> dict[str, Any]:
    """Routing of Qwen3-MoE: softmax, top k, optionally normalised over the k; no token is dropped."""
    if not model.is_moe:
        return {}
    return {
        "num_moe_experts": model.num_experts,
        "moe_ffn_hidden_size": model.moe_intermediate_size,
        "moe_router_topk": model.num_experts_per_tok,
        "moe_router_pre_softmax": not model.norm_topk_prob,
        "moe_router_dtype": moe.router_dtype,
        "moe_router_load_balancing_type": "aux_loss" if moe.aux_loss_coeff > 0 else "none",
        "moe_aux_loss_coeff": moe.aux_loss_coeff,
        "moe_router_fusion": moe.router_fusion,
        **_dispatcher(moe),
    }


def _dispatcher(moe: MoeConfig) -> dict[str, Any]:
    if moe.uses_deep_ep:
        return {"moe_token_dispatcher_type": "flex", "moe_flex_dispatcher_backend": moe.dispatcher}
    return {"moe_token_dispatcher_type": moe.dispatcher}


def _recompute(precision: PrecisionConfig) -> dict[str, Any]:
    if precision.recompute == "none":
        return {}
    if precision.recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": list(precision.recompute_modules)}
    return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def _fp8(precision: PrecisionConfig) -> dict[str, Any]:
    """FP8 products. Weights stay in bf16: loading, export and the optimizer are the same as without FP8."""
    fp8 = precision.fp8
    if fp8 is None:
        return {}
    return {
        "fp8": fp8.number_format,
        "fp8_recipe": fp8.recipe,
        "fp8_margin": fp8.margin,
        "fp8_amax_history_len": fp8.amax_history_len,
        "fp8_amax_compute_algo": fp8.amax_compute_algo,
        "first_last_layers_bf16": fp8.num_bf16_layers > 0,
        "num_layers_at_start_in_bf16": fp8.bf16_layers_at_start,
        "num_layers_at_end_in_bf16": fp8.bf16_layers_at_end,
    }


def _fusions(model: ModelConfig, precision: PrecisionConfig, moe: MoeConfig) -> dict[str, Any]:
    """Fused CUDA kernels of TransformerEngine."""
    fused = precision.transformer_engine
    return {
        "transformer_impl": "transformer_engine" if fused else "local",
        "apply_rope_fusion": fused,
        "bias_activation_fusion": fused,
        "cross_entropy_loss_fusion": precision.fuses_cross_entropy,
        "cross_entropy_fusion_impl": "te",
        "moe_grouped_gemm": fused and model.is_moe and moe.grouped_gemm,
        "moe_permute_fusion": fused and model.is_moe,
    }
