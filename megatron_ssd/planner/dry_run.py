"""Builds every rank's part of a model without GPUs, on the meta device, under a fake process group.

Parameters are counted from what was built, not from the configuration's formula. A shard is identified by its name and
its offset in the full parameter, and is counted once even if several ranks hold it.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

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
from megatron_ssd.progress import progress
from megatron_ssd.runtime import cpu
from megatron_ssd.runtime.process_groups import fake_process_group


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """The parameters that one rank would hold."""

    rank: int
    tensor_rank: int
    pipeline_rank: int
    context_rank: int
    expert_rank: int
    data_rank: int
    num_parameters: int
    num_expert_parameters: int = 0  # those that differ between the ranks of expert parallelism
    num_frozen_parameters: int = 0
    num_fp8_weights: int = 0  # weights of FP8 products


@dataclass(frozen=True, kw_only=True)
class LayoutReport:
    """Every rank, and the parameters of the full model."""

    ranks: tuple[RankReport, ...]
    num_parameters: int

    def table(self) -> str:
        """The report as text, one line per rank."""
        lines = ["rank  tensor  pipeline  context  expert  data        parameters"]
        lines += [
            f"{r.rank:4d}  {r.tensor_rank:6d}  {r.pipeline_rank:8d}  {r.context_rank:7d}  {r.expert_rank:6d}  "
            f"{r.data_rank:4d}  {r.num_parameters:16,d}"
            for r in self.ranks
        ]
        return "\n".join([*lines, f"full model, each parameter once: {self.num_parameters:,}"])


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
    ranks = []
    for rank in progress(range(parallel.world_size), desc="laying out", unit="rank"):
        with fake_process_group(parallel, rank=rank):
            chunks = build_model(model, parallel, local, moe=moe, device="meta")
            for chunk in chunks:
                for shard in local_shards(chunk):
                    shards[shard.key, shard.global_offset, shard.local_shape] = math.prod(shard.local_shape)
            report = RankReport(
                rank=rank,
                tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
                pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
                context_rank=parallel_state.get_context_parallel_rank(),
                expert_rank=parallel_state.get_expert_model_parallel_rank(),
                data_rank=parallel_state.get_data_parallel_rank(),
                num_parameters=_count(chunks, lambda _: True),
                num_expert_parameters=_count(chunks, lambda parameter: not getattr(parameter, "allreduce", True)),
                num_frozen_parameters=_count(chunks, lambda parameter: not parameter.requires_grad),
                num_fp8_weights=_count_fp8_weights(chunks, precision.fp8, model.num_hidden_layers),
            )
        ranks.append(report)
    return LayoutReport(ranks=tuple(ranks), num_parameters=sum(shards.values()))


def _count(chunks: Iterable[nn.Module], wanted: Callable[[nn.Parameter], bool]) -> int:
    return sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters() if wanted(parameter))


def _count_fp8_weights(chunks: Iterable[nn.Module], fp8: Fp8Config | None, num_layers: int) -> int:
    """Weights of projections and experts in the FP8 layers. Router and output layer stay in bf16."""
    if fp8 is None:
        return 0
    in_fp8 = range(fp8.bf16_layers_at_start, num_layers - fp8.bf16_layers_at_end)
    return sum(
        parameter.numel()
        for chunk in chunks
        for layer in chunk.decoder.layers  # type: ignore[union-attr]
        if layer.layer_number - 1 in in_fp8
        for name, parameter in layer.named_parameters()
        if "linear_" in name
    )
