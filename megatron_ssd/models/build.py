"""Builds this rank's part of a GPTModel."""

from __future__ import annotations

import importlib.metadata
import logging
import math
import random
from contextlib import nullcontext

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_ssd.config.model import ModelConfig, MoeConfig, RopeScalingConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.models.bf16_products import needs_rounded_products, round_products
from megatron_ssd.models.fused_gradients import fuse_gradient_accumulation
from megatron_ssd.models.initialization import initialize_weights
from megatron_ssd.models.layer_specs import block_spec
from megatron_ssd.models.routers import freeze_routers
from megatron_ssd.models.transformer_config import transformer_config
from megatron_ssd.models.vocabulary import mask_vocab_padding, padded_vocab_size
from megatron_ssd.runtime.hardware import has_apex_kernel
from megatron_ssd.runtime.meta import on_meta

log = logging.getLogger(__name__)


def build_model(
    model: ModelConfig,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    *,
    moe: MoeConfig = MoeConfig(),  # noqa: B008 - frozen
    device: str,
    seed: int | None = 0,
) -> list[GPTModel]:
    """The model chunks of this rank, one per virtual pipeline stage (one without virtual stages).

    Needs initialised process groups that match ``parallel``.

    Args:
        device: ``cuda``, ``cpu``, or ``meta`` for shapes without memory.
        seed: of the initial weights, which are the same for every layout; None if the caller loads weights.

    Raises:
        ConfigError: ``parallel`` does not fit the model.
    """
    parallel.check_model(model)
    config = transformer_config(model, parallel, precision, moe)
    config.init_model_with_meta_device = device == "meta"
    config.deallocate_pipeline_outputs = device == "cuda"  # gloo may still be reading what this would free
    _seed_process(seed or 0)  # Megatron-Core enters its random states while building, whether it draws or not
    num_stages = parallel.virtual_pipeline_model_parallel_size
    with on_meta() if device == "meta" else nullcontext():
        chunks = [
            _build_chunk(model, parallel, config, precision, vp_stage=None if num_stages is None else stage)
            for stage in range(num_stages or 1)
        ]
    if device != "meta" and dist.get_rank() == 0:
        log.info("layers: %s", describe_layers(model, precision, moe))
    if moe.freeze_router:
        freeze_routers(chunks)
    if device == "cuda":
        chunks = [chunk.cuda() for chunk in chunks]
        if precision.fuses_gradient_accumulation:
            fuse_gradient_accumulation(chunks, has_apex_kernel=has_apex_kernel())
    if device == "cpu" and precision.fast_matmul and needs_rounded_products():
        round_products(chunks)
    if device != "meta" and seed is not None:
        initialize_weights(chunks, seed=seed, vocab_size=model.vocab_size)
    for chunk in chunks:
        mask_vocab_padding(chunk, model.vocab_size)
        if model.rope_scaling is not None:
            chunk.rotary_pos_emb.inv_freq = scaled_frequencies(chunk.rotary_pos_emb.inv_freq, model.rope_scaling)
    return chunks


def describe_layers(model: ModelConfig, precision: PrecisionConfig, moe: MoeConfig) -> str:
    """Implementation of the layers, for people."""
    if not precision.transformer_engine:
        return f"Megatron-Core's own, in {precision.params_dtype} (precision.transformer_engine=false)"
    version = importlib.metadata.version("transformer-engine")
    products = f"FP8 {precision.fp8.recipe}" if precision.fp8 else precision.params_dtype
    experts = f", {'grouped' if moe.grouped_gemm else 'sequential'} experts" if model.is_moe else ""
    return f"TransformerEngine {version}, in {products}{experts}"


def _seed_process(seed: int) -> None:
    """Seed Python, numpy, torch and Megatron-Core's tracker.

    In its tracker, Megatron-Core gives each tensor-parallel and expert-parallel rank its own state, and data-parallel
    replicas the same one.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed, force_reset_rng=True)


def _build_chunk(
    model: ModelConfig,
    parallel: ParallelConfig,
    config: TransformerConfig,
    precision: PrecisionConfig,
    *,
    vp_stage: int | None,
) -> GPTModel:
    return GPTModel(
        config=config,
        transformer_layer_spec=block_spec(config, transformer_engine=precision.transformer_engine, vp_stage=vp_stage),
        vocab_size=padded_vocab_size(model, parallel),
        max_sequence_length=model.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
        share_embeddings_and_output_weights=model.tie_word_embeddings,
        position_embedding_type="rope",
        rotary_base=model.rope_theta,
        vp_stage=vp_stage,
    )


def scaled_frequencies(inv_freq: Tensor, scaling: RopeScalingConfig) -> Tensor:
    """Rotary frequencies ``inv_freq`` [head_dim / 2], in radians per token, scaled.

    ``linear`` divides all of them by ``factor``. With ``llama3``, wavelengths below ``original / high_freq_factor``
    tokens stay, those above ``original / low_freq_factor`` grow by ``factor``, and those between are interpolated.
    Megatron-Core's ``RotaryEmbedding`` can scale too, but only with the constants of Llama 3.1 itself.

    Source: transformers, ``modeling_rope_utils``, ``rope_type: linear`` and ``rope_type: llama3``.
    """
    if scaling.rope_type == "linear":
        return inv_freq / scaling.factor
    original = scaling.original_max_position_embeddings
    rotations = original / (2 * math.pi / inv_freq)  # over the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    weight = ((rotations - low) / (high - low)).clamp(0.0, 1.0)
    return torch.lerp(inv_freq / scaling.factor, inv_freq, weight)
