"""Building GPTModel for the rank that this process is."""

from __future__ import annotations

import importlib.metadata
import logging
from contextlib import nullcontext

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_ssd.config.model import ModelConfig, MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.models.initialization import initialize_weights
from megatron_ssd.models.layer_specs import block_spec
from megatron_ssd.models.rope import scaled_frequencies
from megatron_ssd.models.routers import freeze_routers
from megatron_ssd.models.transformer_config import transformer_config
from megatron_ssd.models.vocabulary import leave_out_padding, padded_vocab_size
from megatron_ssd.runtime.seed import seed_process

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
    """The model chunks of this rank, one a virtual pipeline stage (one in all without virtual stages).

    Needs initialised process groups that match ``parallel``.

    Args:
        device: ``cuda``, ``cpu``, or ``meta`` for shapes without memory.
        seed: of the initial weights, the same whatever the layout; None leaves them unset for a caller that loads them.

    Raises:
        ConfigError: the model cannot be laid out so.
    """
    parallel.check_model(model)
    config = transformer_config(model, parallel, precision, moe)
    config.init_model_with_meta_device = device == "meta"
    config.deallocate_pipeline_outputs = device == "cuda"  # gloo may still be reading what this would free
    seed_process(seed or 0)  # Megatron-Core builds within its random states, whether it draws or not
    stages = parallel.virtual_pipeline_model_parallel_size
    with torch.device("meta") if device == "meta" else nullcontext():
        chunks = [
            _build_chunk(model, parallel, config, precision, vp_stage=None if stages is None else stage)
            for stage in range(stages or 1)
        ]
    if device != "meta" and dist.get_rank() == 0:
        log.info("layers: %s", _which_layers(model, precision, moe))
    if moe.freeze_router:
        freeze_routers(chunks)
    if device == "cuda":
        chunks = [chunk.cuda() for chunk in chunks]
    if device != "meta" and seed is not None:
        initialize_weights(chunks, seed=seed, vocab_size=model.vocab_size)
    for chunk in chunks:
        leave_out_padding(chunk, model.vocab_size)
        if model.rope_scaling is not None:
            chunk.rotary_pos_emb.inv_freq = scaled_frequencies(chunk.rotary_pos_emb.inv_freq, model.rope_scaling)
    return chunks


def _which_layers(model: ModelConfig, precision: PrecisionConfig, moe: MoeConfig) -> str:
    """In words, for the log."""
    if not precision.transformer_engine:
        return f"Megatron-Core's own, in {precision.params_dtype} (precision.transformer_engine=false)"
    version = importlib.metadata.version("transformer-engine")
    products = f"FP8 {precision.fp8.recipe}" if precision.fp8 else precision.params_dtype
    experts = f", {'grouped' if moe.grouped_gemm else 'sequential'} experts" if model.is_moe else ""
    return f"TransformerEngine {version}, in {products}{experts}"


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
