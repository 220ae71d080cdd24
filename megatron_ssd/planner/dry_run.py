"""Builds every rank's part of a model without GPUs, on the meta device, under a fake process group.

Parameters are counted from what was built, not from the configuration's formula. A shard is identified by its name and
its offset in the full parameter, and is counted once even if several ranks hold it.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable

import torch
from megatron.core import parallel_state
from torch import nn

from megatron_ssd.config.model import ModelConfig, MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import Fp8Config, PrecisionConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.models.build import build_model
from megatron_ssd.models.initialization import local_shards
from megatron_ssd.models.vocabulary import padded_vocab_size
from megatron_ssd.planner.layout import LayoutReport, RankReport
from megatron_ssd.progress import progress
from megatron_ssd.runtime import cpu
from megatron_ssd.runtime.process_groups import fake_process_group


def run_dry(config: RunConfig) -> None:
    """Build every rank of ``config.parallel`` and print what each would hold. Needs no GPU and no torchrun.

    Under torchrun, only rank 0 does this.
    """
    if int(os.environ.get("RANK", "0")) != 0:
        return
    model = needed(config.model, "model")
    report = lay_out(model, config.parallel, config.precision, config.moe)
    training, parallel = config.training, config.parallel
    padding = _padding(model, parallel)
    assert report.num_parameters == model.num_parameters() + padding, (report.num_parameters, padding)
    print(f"{model.name}: {parallel.world_size} processes, {config.precision.params_dtype}")
    print(report.table() + (f", {padding:,} of them to pad the vocabulary" if padding else ""))
    print(
        f"per iteration: {training.global_batch_size} sequences of {training.seq_length} tokens in "
        f"{training.num_microbatches(parallel.data_parallel_size)} micro batches on each of "
        f"{parallel.data_parallel_size} replicas"
    )


def _padding(model: ModelConfig, parallel: ParallelConfig) -> int:
    """Parameters that pad the vocabulary to a multiple of the tensor parallel size."""
    num_tokens = padded_vocab_size(model, parallel) - model.vocab_size
    return num_tokens * model.hidden_size * (1 if model.tie_word_embeddings else 2)


def lay_out(
    model: ModelConfig,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    moe: MoeConfig = MoeConfig(),  # noqa: B008 - frozen
) -> LayoutReport:
    """Build ``model`` as each rank of ``parallel`` would, without allocating memory.

    The layers are Megatron-Core's own. TransformerEngine's hold the same parameters (with FP8 too, whose weights are
    bf16) and cannot be built without CUDA.
    """
    if not torch.cuda.is_available():
        cpu.install()
    local = dataclasses.replace(precision, transformer_engine=False, fp8=None, recompute="none")
    moe = dataclasses.replace(moe, dispatcher="alltoall")  # DeepEP's is a CUDA library
    shards: dict[tuple[object, ...], int] = {}
    ranks = tuple(
        _build_rank(rank, model, parallel, local, moe, shards, fp8=precision.fp8)
        for rank in progress(range(parallel.world_size), desc="laying out", unit="rank")
    )
    return LayoutReport(ranks=ranks, num_parameters=sum(shards.values()))


def _build_rank(
    rank: int,
    model: ModelConfig,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    moe: MoeConfig,
    shards: dict[tuple[object, ...], int],
    *,
    fp8: Fp8Config | None,
) -> RankReport:
    """The report of ``rank``; the sizes of its shards are added to ``shards``."""
    with fake_process_group(parallel, rank=rank):
        chunks = build_model(model, parallel, precision, moe=moe, device="meta")
        for chunk in chunks:
            for shard in local_shards(chunk):
                shards[shard.key, shard.global_offset, shard.local_shape] = math.prod(shard.local_shape)
        return RankReport(
            rank=rank,
            tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
            pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
            context_rank=parallel_state.get_context_parallel_rank(),
            expert_rank=parallel_state.get_expert_model_parallel_rank(),
            data_rank=parallel_state.get_data_parallel_rank(),
            num_parameters=_count(chunks, lambda _: True),
            num_expert_parameters=_count(chunks, lambda parameter: not getattr(parameter, "allreduce", True)),
            num_frozen_parameters=_count(chunks, lambda parameter: not parameter.requires_grad),
            num_fp8_weights=0 if fp8 is None else _count_fp8_weights(chunks, fp8, model.num_hidden_layers),
        )


def _count(chunks: Iterable[nn.Module], wanted: Callable[[nn.Parameter], bool]) -> int:
    return sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters() if wanted(parameter))


def _count_fp8_weights(chunks: Iterable[nn.Module], fp8: Fp8Config, num_layers: int) -> int:
    """Weights of projections and experts in the FP8 layers. Router and output layer stay in bf16."""
    in_fp8 = range(fp8.bf16_layers_at_start, num_layers - fp8.bf16_layers_at_end)
    return sum(
        parameter.numel()
        for chunk in chunks
        for layer in chunk.decoder.layers  # type: ignore[union-attr]
        if layer.layer_number - 1 in in_fp8
        for name, parameter in layer.named_parameters()
        if "linear_" in name
    )
