"""Models on the meta device, rank by rank: what TransformerEngine's layers hold, compared with Megatron-Core's own."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.models.gpt import GPTModel

from megatron_ssd.config.model import ModelConfig, MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.export.full_model import full_model
from megatron_ssd.models.build import build_model
from megatron_ssd.models.hf_checkpoint import _full_hf_shapes, map_parameters
from megatron_ssd.models.hf_weights import Shape
from megatron_ssd.models.initialization import local_shards
from megatron_ssd.models.mappings import all_hf_names
from megatron_ssd.models.vocabulary import padded_vocab_size
from megatron_ssd.planner.dry_run import LOCAL_LAYERS, acting_as, lay_out

COUNTS = Counter[str]()  # of what was built from TransformerEngine's layers

# TransformerEngine has the norm before a product in the module of the product, since it computes both in one kernel.
# All experts of a rank are one module with numbered weights. The keys in a checkpoint are the same.
_NORM_OF_ATTENTION = (r"\.input_layernorm\.weight$", ".self_attention.linear_qkv.layer_norm_weight")
_NORM_OF_MLP = (r"\.pre_mlp_layernorm\.weight$", ".mlp.linear_fc1.layer_norm_weight")
_EXPERT = (r"\.local_experts\.(\d+)\.(linear_fc[12])\.weight$", r".\2.weight\1")


@dataclass(frozen=True)
class Built:
    """What one rank holds.

    Args:
        parameters: shape and type of each parameter, by the number of its chunk and its name.
        hf_shapes: full shapes of the Hugging Face weights that they are made of.
        patterns: the patterns of the weight table that they match.
        shards: the tensors of its checkpoint: key, type, full shape, offset, shape and number of the replica.
        objects: keys of the objects of its checkpoint.
    """

    parameters: dict[tuple[int, str], tuple[Shape, torch.dtype]]
    hf_shapes: dict[str, Shape]
    patterns: frozenset[str]
    shards: frozenset[tuple[object, ...]]
    objects: frozenset[str]


def chunks_of_ranks(
    model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig, moe: MoeConfig
) -> Iterator[list[GPTModel]]:
    """The chunks of each rank that holds another part of ``model`` than those before it, inside its process groups."""
    moe = dataclasses.replace(moe, dispatcher="alltoall")  # DeepEP is a CUDA library
    seen = set()
    for rank in range(parallel.world_size):
        with acting_as(rank, parallel) as part:
            if part not in seen:
                seen.add(part)
                yield build_model(model, parallel, precision, moe=moe, device="meta")


@functools.cache
def built_ranks(
    model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig, moe: MoeConfig
) -> tuple[Built, ...]:
    """What each of these ranks holds. Everything must be on the meta device."""
    return tuple(_built(chunks, model, parallel) for chunks in chunks_of_ranks(model, parallel, precision, moe))


def _built(chunks: list[GPTModel], model: ModelConfig, parallel: ParallelConfig) -> Built:
    assert all(parameter.is_meta for chunk in chunks for parameter in chunk.parameters())
    mapped = [each for chunk in chunks for each in map_parameters(chunk, model)]
    return Built(
        parameters={
            (number, name): (tuple(parameter.shape), parameter.dtype)
            for number, chunk in enumerate(chunks)
            for name, parameter in chunk.named_parameters()
        },
        hf_shapes={name: shape for each in mapped for name, shape in _full_hf_shapes(each, model, parallel).items()},
        patterns=frozenset(each.mapping.megatron for each in mapped),
        shards=frozenset(
            (shard.key, shard.dtype, shard.global_shape, shard.global_offset, shard.local_shape, shard.replica_id)
            for chunk in chunks
            for shard in local_shards(chunk)
        ),
        objects=frozenset(
            value.unique_key
            for chunk in chunks
            for value in nested_values(chunk.sharded_state_dict())
            if isinstance(value, ShardedObject)
        ),
    )


def check_transformer_engine(
    model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig, moe: MoeConfig
) -> None:
    """Assert that every rank holds the same with TransformerEngine's layers as with Megatron-Core's own.

    The weight table must lead from their parameters to all Hugging Face weights of the model and back.
    """
    own, fused = (built_ranks(model, parallel, layers, moe) for layers in (LOCAL_LAYERS, precision))
    for one, other in zip(own, fused, strict=True):
        names = {(number, _renamed(name, model, moe)): held for (number, name), held in one.parameters.items()}
        assert other.parameters == names
        assert other.hf_shapes == one.hf_shapes
        assert other.shards == one.shards
        assert {key for key in other.objects ^ one.objects if "norm._extra_state" not in key} == set()
    shapes = {name: shape for built in fused for name, shape in built.hf_shapes.items()}
    assert shapes.keys() == all_hf_names(model)
    assert shapes == _full(model).hf_shapes
    # A converted checkpoint has every object, so that Megatron-Core loads it into either kind of layers.
    assert {key for built in fused for key in built.objects} == set(_full(model).object_keys)

    report = lay_out(model, parallel, moe, precision)
    assert report == lay_out(model, parallel, moe)
    padding = (padded_vocab_size(model, parallel) - model.vocab_size) * model.hidden_size
    tables = 1 if model.tie_word_embeddings else 2
    assert report.num_parameters == model.num_parameters() + tables * padding
    COUNTS["ranks"] += len(report.ranks)
    COUNTS["layouts"] += 1


_full = functools.cache(full_model)


def _renamed(name: str, model: ModelConfig, moe: MoeConfig) -> str:
    """The name in TransformerEngine's layers of a parameter of Megatron-Core's own."""
    changes = [_NORM_OF_ATTENTION]
    if not model.is_moe:
        changes.append(_NORM_OF_MLP)  # that of experts stays, because the router needs its output too
    elif moe.grouped_gemm:
        changes.append(_EXPERT)
    for pattern, new in changes:
        name = re.sub(pattern, new, name)
    return name
