"""Weights from a Hugging Face folder into this rank's part of a Megatron-Core model.

A rank reads the slices that it holds and nothing else, whatever the layout. Nothing is skipped in silence: weights
that the table does not know, missing ones, and those of another shape are refused together, with their names.
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

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.errors import UserError
from megatron_ssd.models.families import family_of
from megatron_ssd.models.families.mappings import ParamMapping, VocabularyMapping, all_hf_names, find_mapping
from megatron_ssd.models.hf_folder import HFWeights, Shape, listed, read_hf_config
from megatron_ssd.models.vocabulary import num_tokens_here
from megatron_ssd.progress import progress


class MappedParameter(NamedTuple):
    """A parameter of this rank, its row in the table, and the Hugging Face weights that it is made of."""

    name: str
    parameter: torch.nn.Parameter
    mapping: ParamMapping
    hf_names: tuple[str, ...]


def load_hf_weights(
    model_chunks: Sequence[GPTModel], model: ModelConfig, parallel: ParallelConfig, folder: Path
) -> int:
    """Fill every parameter of this rank from ``folder``, converted to the parameter's own type.

    Needs process groups that match ``parallel``. Any tensor, pipeline, virtual pipeline and expert parallel layout.

    Returns:
        How many bytes of weights this rank read.

    Raises:
        UserError: ``config.json`` and ``model`` differ, or weights are missing, unknown or misshapen.
    """
    family = family_of(model.model_type)
    family.check_hf_config(read_hf_config(folder), model, source=folder / "config.json")
    weights = HFWeights(folder)
    mapped = [row for chunk in model_chunks for row in map_parameters(chunk, model)]
    check_weights(
        weights, model, {name: shape for row in mapped for name, shape in _hf_shapes(row, model, parallel).items()}
    )
    shown = progress(mapped, desc=f"reading {folder.name}", unit="weight") if dist.get_rank() == 0 else mapped
    with torch.no_grad():
        for row in shown:
            _fill(row.parameter, _read_slice(row, weights, model, parallel))
    return weights.bytes_read


def check_weights(weights: HFWeights, model: ModelConfig, shapes: dict[str, Shape]) -> None:
    """Compare the folder's weights with all that ``model`` has, and with the shapes of those that are wanted here.

    Raises:
        UserError: names what is missing, unknown or misshapen, the first few of each.
    """
    family = family_of(model.model_type)
    expected = all_hf_names(family.all_mappings(model), model)
    misshapen = [
        f"{name} has shape {list(weights.shape(name))} and the model wants {list(shape)}"
        for name, shape in sorted(shapes.items())
        if name in weights.names and weights.shape(name) != shape
    ]
    refuse_weights(
        f"folder {weights.folder}",
        missing=expected - weights.names,
        unknown=weights.names - expected - family.ignored_hf_names(model),
        misshapen=misshapen,
        fix="choose the model group that goes with model.path, or download that model again",
    )


def refuse_weights(
    where: str, *, missing: Iterable[str], unknown: Iterable[str], misshapen: Sequence[str], fix: str
) -> None:
    """Raise ``UserError`` unless all three are empty."""
    kinds = {"missing": sorted(missing), "unknown": sorted(unknown), "misshapen": sorted(misshapen)}
    said = [f"{len(names)} weight(s) {kind}: {listed(names)}" for kind, names in kinds.items() if names]
    if said:
        raise UserError(where, rule="; ".join(said), fix=fix)


def map_parameters(chunk: GPTModel, model: ModelConfig) -> Iterator[MappedParameter]:
    """Each parameter of this rank's ``chunk`` with the Hugging Face weights of its global layer and expert."""
    table = family_of(model.model_type).all_mappings(model)
    for name, parameter in chunk.named_parameters():
        mapping, numbers = find_mapping(table, name)
        if "layer" in numbers:
            numbers["layer"] = chunk.decoder.layers[numbers["layer"]].layer_number - 1
        if mapping.is_expert:
            local_experts = (model.num_experts or 0) // parallel_state.get_expert_model_parallel_world_size()
            numbers["expert"] += parallel_state.get_expert_model_parallel_rank() * local_experts
        yield MappedParameter(name, parameter, mapping, mapping.hf_names(numbers))


def _hf_shapes(row: MappedParameter, model: ModelConfig, parallel: ParallelConfig) -> dict[str, Shape]:
    """Shapes of the whole Hugging Face weights that go with this rank's parameter."""
    parts, _ = _place(row.mapping, parallel)
    shape = tuple(
        size * parts if dim == row.mapping.shard_dim else size for dim, size in enumerate(row.parameter.shape)
    )
    return dict(zip(row.hf_names, row.mapping.hf_shapes(shape, model), strict=True))


def _read_slice(row: MappedParameter, weights: HFWeights, model: ModelConfig, parallel: ParallelConfig) -> Tensor:
    """This rank's value of a parameter, without the rows that pad a vocabulary."""
    split = row.mapping.shard_dim
    if split is None:
        return row.mapping.merge([weights.read(name) for name in row.hf_names], model)
    parts, part = _place(row.mapping, parallel)
    if isinstance(row.mapping, VocabularyMapping):
        start = part * row.parameter.shape[0]
        stop = start + num_tokens_here(row.parameter.shape[0], model.vocab_size)
        return weights.read(row.hf_names[0], dim=split, start=start, stop=stop)
    slices = []
    for name in row.hf_names:
        length = weights.shape(name)[split] // parts
        slices.append(weights.read(name, dim=split, start=part * length, stop=(part + 1) * length))
    return row.mapping.merge(slices, model)


def _place(mapping: ParamMapping, parallel: ParallelConfig) -> tuple[int, int]:
    """(number of parts that ``rule`` is split into, which of them this rank holds)."""
    if mapping.is_expert:
        return parallel.expert_tensor_parallel_size, parallel_state.get_expert_tensor_parallel_rank()
    return parallel.tensor_model_parallel_size, parallel_state.get_tensor_model_parallel_rank()


def _fill(parameter: Tensor, value: Tensor) -> None:
    """Copy ``value``; where it has fewer rows, the rest is zero."""
    if value.shape == parameter.shape:
        parameter.copy_(value)
    else:
        parameter[: len(value)].copy_(value)
        parameter[len(value) :].zero_()
