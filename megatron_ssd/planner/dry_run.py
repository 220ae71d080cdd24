"""Builds every rank's part of a model without GPUs, on the meta device, under a fake process group.

Parameters are counted from what was built, not from the configuration's formula. A shard is identified by its name and
its offset in the full parameter, and is counted once even if several ranks hold it. Ranks that differ only in their
data or context part hold the same shards, which are built once, also for several layouts.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.extensions.transformer_engine import HAVE_TE
from torch import nn

from megatron_ssd.config.model import ModelConfig, MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.models.build import build_model, describe_layers
from megatron_ssd.models.initialization import local_shards
from megatron_ssd.models.vocabulary import padded_vocab_size
from megatron_ssd.nvidia_smi import visible_capability
from megatron_ssd.planner.layout import LayoutReport, RankReport
from megatron_ssd.planner.plan import iteration_text, numbers_name, numbers_reason
from megatron_ssd.progress import progress
from megatron_ssd.runtime import cpu
from megatron_ssd.runtime.process_groups import fake_process_group

# Megatron-Core's own layers, which can be built everywhere. TransformerEngine's hold the same parameters (tests/te).
LOCAL_LAYERS = PrecisionConfig(transformer_engine=False)
# The sizes of ``ParallelConfig`` that split parameters.
_SPLITS = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size",
           "expert_model_parallel_size", "expert_tensor_parallel_size")  # fmt: skip


def run_dry(config: RunConfig) -> None:
    """Build every rank of ``config.parallel`` and print what each would hold. Needs no GPU and no torchrun.

    Under torchrun, only rank 0 does this. Where TransformerEngine cannot be imported, Megatron-Core's own layers are
    built in place of its layers, and the output says so.
    """
    if int(os.environ.get("RANK", "0")) != 0:
        return
    model = needed(config.model, "model")
    parallel, fused = config.parallel, config.precision.transformer_engine
    report = lay_out(model, parallel, config.moe, LOCAL_LAYERS if fused and not HAVE_TE else config.precision)
    num_padding_tokens = padded_vocab_size(model, parallel) - model.vocab_size
    padding = num_padding_tokens * model.hidden_size * (1 if model.tie_word_embeddings else 2)
    assert report.num_parameters == model.num_parameters() + padding, (report.num_parameters, padding)
    count = parallel.world_size
    print(f"{model.name}: {f'{count} processes' if count > 1 else 'one process'}, {numbers_name(config.precision)}")
    if config.precision.auto:
        print(numbers_reason(config.precision, visible_capability()))
    if fused and not HAVE_TE:
        print("layers: Megatron-Core's own, with the parameters of TransformerEngine's, which cannot be imported here")
    else:
        print(f"layers: {describe_layers(model, config.precision, config.moe)}")
    print(report.table() + (f", {padding:,} of them to pad the vocabulary" if padding else ""))
    print(iteration_text(config.training, parallel))


@functools.cache
def lay_out(
    model: ModelConfig,
    parallel: ParallelConfig,
    moe: MoeConfig = MoeConfig(),  # noqa: B008 - frozen
    precision: PrecisionConfig = LOCAL_LAYERS,
) -> LayoutReport:
    """Build ``model`` as each rank of ``parallel`` would, without allocating memory.

    Args:
        precision: chooses the layers. All hold the same parameters.
    """
    moe = dataclasses.replace(moe, dispatcher="alltoall")  # DeepEP's is a CUDA library
    ranks, parts = [], list[_Shards]()
    for rank in progress(range(parallel.world_size), desc="laying out", unit="rank"):
        with acting_as(rank, parallel) as part:
            # What a rank holds depends neither on the number of replicas nor on the ranks that share its tokens.
            key = (model, moe, precision, *(getattr(parallel, size) for size in _SPLITS), part)
            if key not in _BUILT:
                _BUILT[key] = _build(model, parallel, moe, precision)
            parts.append(_BUILT[key])
            tensor_rank, pipeline_rank, expert_rank, _ = part
            ranks.append(
                RankReport(
                    rank=rank,
                    tensor_rank=tensor_rank,
                    pipeline_rank=pipeline_rank,
                    context_rank=parallel_state.get_context_parallel_rank(),
                    expert_rank=expert_rank,
                    data_rank=parallel_state.get_data_parallel_rank(),
                    **parts[-1].counts,
                )
            )
    shards = {key: size for each in parts for key, size in each.sizes.items()}
    return LayoutReport(ranks=tuple(ranks), num_parameters=sum(shards.values()))


@contextmanager
def acting_as(rank: int, parallel: ParallelConfig) -> Iterator[tuple[int, int, int, int]]:
    """Build what rank ``rank`` of ``parallel`` would, while entered; see ``fake_process_group``.

    Yields:
        The rank's tensor, pipeline, expert and expert-tensor rank. Ranks that agree in these hold the same shards.
    """
    if not torch.cuda.is_available():
        cpu.install()
    with fake_process_group(parallel, rank=rank):
        yield (
            parallel_state.get_tensor_model_parallel_rank(),
            parallel_state.get_pipeline_model_parallel_rank(),
            parallel_state.get_expert_model_parallel_rank(),
            parallel_state.get_expert_tensor_parallel_rank(),
        )


@dataclass(frozen=True)
class _Shards:
    """What one part of the model holds: fields of ``RankReport``, and the size of each shard by its identity."""

    counts: dict[str, Any]
    sizes: dict[tuple[object, ...], int]


_BUILT: dict[tuple[object, ...], _Shards] = {}  # by what they depend on


def _build(model: ModelConfig, parallel: ParallelConfig, moe: MoeConfig, precision: PrecisionConfig) -> _Shards:
    """Build the current rank's part of ``model``."""
    chunks = build_model(model, parallel, precision, moe=moe, device="meta")
    return _Shards(
        counts={
            "num_parameters": _count(chunks, lambda _: True),
            "num_expert_parameters": _count(chunks, lambda parameter: not getattr(parameter, "allreduce", True)),
            "num_frozen_parameters": _count(chunks, lambda parameter: not parameter.requires_grad),
            "num_product_weights": _count_product_weights(chunks, model.num_hidden_layers),
        },
        sizes={
            (shard.key, shard.global_offset, shard.local_shape): math.prod(shard.local_shape)
            for chunk in chunks
            for shard in local_shards(chunk)
        },
    )


def _count(chunks: Iterable[nn.Module], wanted: Callable[[nn.Parameter], bool]) -> int:
    return sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters() if wanted(parameter))


def _count_product_weights(chunks: Sequence[nn.Module], num_layers: int) -> tuple[int, ...]:
    counts = Counter[int]()
    for chunk in chunks:
        for layer in chunk.decoder.layers:  # type: ignore[union-attr]
            for name, parameter in layer.named_parameters():
                is_product = "linear_" in name and "layer_norm" not in name  # TransformerEngine's have a norm inside
                counts[layer.layer_number - 1] += parameter.numel() if is_product else 0
    return tuple(counts[number] for number in range(num_layers))
