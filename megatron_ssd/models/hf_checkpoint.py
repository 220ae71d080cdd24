"""Loads a Hugging Face checkpoint into this rank's part of a Megatron-Core model.

A rank reads only the slices that it holds, for every layout. Nothing is skipped silently: weights that no parameter
mapping knows, missing weights and weights of another shape raise one error that names them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_ssd.artifacts.hf_config import read_hf_config
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.errors import UserError
from megatron_ssd.models.architectures import check_hf_config
from megatron_ssd.models.hf_weights import HFWeights, Shape, abbreviate
from megatron_ssd.models.mappings import (
    EMBEDDING,
    HEAD,
    ParamMapping,
    VocabularyMapping,
    all_hf_names,
    find_mapping,
    ignored_hf_names,
    parameter_mappings,
)
from megatron_ssd.models.vocabulary import num_local_tokens
from megatron_ssd.progress import progress
from megatron_ssd.runtime.process_groups import on_rank_zero

_ROWS_COMPARED = 4096  # at a time, of an embedding and its copy


class MappedParameter(NamedTuple):
    """A parameter of this rank, its mapping, and the Hugging Face weights that it is made of."""

    name: str
    parameter: torch.nn.Parameter
    mapping: ParamMapping
    hf_names: tuple[str, ...]


def load_hf_weights(
    model_chunks: Sequence[GPTModel], model: ModelConfig, parallel: ParallelConfig, folder: Path
) -> int:
    """Fill every parameter of this rank from ``folder``, converted to the parameter's type.

    Needs process groups that match ``parallel``, with any tensor, pipeline, virtual pipeline and expert parallelism.

    Returns:
        How many bytes of weights this rank read.

    Raises:
        UserError: ``config.json`` and ``model`` differ, weights are missing, unknown or misshapen, or the output layer
            of a model with tied embeddings differs from them.
    """
    check_hf_config(read_hf_config(folder), model, source=folder / "config.json")
    weights = HFWeights(folder)
    parameters = [mapped for chunk in model_chunks for mapped in map_parameters(chunk, model)]
    check_weights(
        weights,
        model,
        {name: shape for mapped in parameters for name, shape in _full_hf_shapes(mapped, model, parallel).items()},
    )
    on_rank_zero(lambda: check_tied_head(weights, model))
    shown = progress(parameters, desc=f"reading {folder.name}", unit="weight") if dist.get_rank() == 0 else parameters
    with torch.no_grad():
        for mapped in shown:
            _fill(mapped.parameter, _read_shard(mapped, weights, model, parallel))
    return weights.num_bytes_read


def check_weights(weights: HFWeights, model: ModelConfig, shapes: dict[str, Shape]) -> None:
    """Compare the folder's weights with those of ``model``, and with ``shapes``, the shapes of those needed here.

    Raises:
        UserError: names the missing, unknown or misshapen weights, the first few of each.
    """
    expected = all_hf_names(model)
    misshapen = [
        f"{name} has shape {list(weights.shape(name))} and the model needs {list(shape)}"
        for name, shape in sorted(shapes.items())
        if name in weights.names and weights.shape(name) != shape
    ]
    refuse_weights(
        f"folder {weights.folder}",
        missing=expected - weights.names,
        unknown=weights.names - expected - ignored_hf_names(model),
        misshapen=misshapen,
        fix="choose the model group for model.path, or download that model again",
    )


def check_tied_head(weights: HFWeights, model: ModelConfig) -> bool:
    """Whether the folder has a copy of the tied embeddings as its output layer; the rest of it was checked.

    Raises:
        UserError: its values differ. vLLM and transformers use it then, and a model with tied embeddings has none.
    """
    if not model.tie_word_embeddings or HEAD not in weights.names:
        return False
    starts = range(0, model.vocab_size, _ROWS_COMPARED)
    if weights.shape(HEAD) != weights.shape(EMBEDDING) or not all(
        torch.equal(*(_bits(weights.read(name, start=at, stop=at + _ROWS_COMPARED)) for name in (HEAD, EMBEDDING)))
        for at in starts
    ):
        raise UserError(
            f"folder {weights.folder} with tie_word_embeddings = true",
            rule=f"its {HEAD} differs from {EMBEDDING}, so programs disagree about the model",
            fix=f"set tie_word_embeddings to false in its config.json if {HEAD} was trained, otherwise remove {HEAD}",
        )
    return True


def _bits(values: Tensor) -> Tensor:
    """The values, exactly: every supported type is a part of fp32."""
    return values.float().view(torch.int32)


def refuse_weights(
    source: str, *, missing: Iterable[str], unknown: Iterable[str], misshapen: Sequence[str], fix: str
) -> None:
    """Raise ``UserError`` unless all three are empty."""
    kinds = {"missing": sorted(missing), "unknown": sorted(unknown), "misshapen": sorted(misshapen)}
    problems = [f"{len(names)} weight(s) {kind}: {abbreviate(names)}" for kind, names in kinds.items() if names]
    if problems:
        raise UserError(source, rule="; ".join(problems), fix=fix)


def map_parameters(chunk: GPTModel, model: ModelConfig) -> Iterator[MappedParameter]:
    """Each parameter of this rank's ``chunk`` with the Hugging Face weights of its global layer and expert."""
    mappings = parameter_mappings(model)
    for name, parameter in chunk.named_parameters():
        mapping, numbers = find_mapping(mappings, name)
        if "layer" in numbers:
            numbers["layer"] = chunk.decoder.layers[numbers["layer"]].layer_number - 1
        if mapping.is_expert:
            local_experts = (model.num_experts or 0) // parallel_state.get_expert_model_parallel_world_size()
            numbers["expert"] += parallel_state.get_expert_model_parallel_rank() * local_experts
        yield MappedParameter(name, parameter, mapping, mapping.hf_names(numbers))


def _full_hf_shapes(mapped: MappedParameter, model: ModelConfig, parallel: ParallelConfig) -> dict[str, Shape]:
    """Shapes of the full Hugging Face weights that this rank's parameter is made of."""
    num_shards, _ = _shard_of(mapped.mapping, parallel)
    shard_dim = mapped.mapping.shard_dim
    shape = tuple(size * num_shards if dim == shard_dim else size for dim, size in enumerate(mapped.parameter.shape))
    return dict(zip(mapped.hf_names, mapped.mapping.hf_shapes(shape, model), strict=True))


def _read_shard(mapped: MappedParameter, weights: HFWeights, model: ModelConfig, parallel: ParallelConfig) -> Tensor:
    """This rank's value of a parameter, without the rows that pad a vocabulary."""
    dim = mapped.mapping.shard_dim
    if dim is None:
        return mapped.mapping.merge([weights.read(name) for name in mapped.hf_names], model)
    num_shards, index = _shard_of(mapped.mapping, parallel)
    if isinstance(mapped.mapping, VocabularyMapping):
        start = index * mapped.parameter.shape[0]
        stop = start + num_local_tokens(mapped.parameter.shape[0], model.vocab_size)
        return weights.read(mapped.hf_names[0], dim=dim, start=start, stop=stop)
    slices = []
    for name in mapped.hf_names:
        length = weights.shape(name)[dim] // num_shards
        slices.append(weights.read(name, dim=dim, start=index * length, stop=(index + 1) * length))
    return mapped.mapping.merge(slices, model)


def _shard_of(mapping: ParamMapping, parallel: ParallelConfig) -> tuple[int, int]:
    """(number of shards of a parameter, index of this rank's shard)."""
    if mapping.is_expert:
        return parallel.expert_tensor_parallel_size, parallel_state.get_expert_tensor_parallel_rank()
    return parallel.tensor_model_parallel_size, parallel_state.get_tensor_model_parallel_rank()


def _fill(parameter: Tensor, value: Tensor) -> None:
    """Copy ``value``. If it has fewer rows, set the rest to zero."""
    if value.shape == parameter.shape:
        parameter.copy_(value)
    else:
        parameter[: len(value)].copy_(value)
        parameter[len(value) :].zero_()
