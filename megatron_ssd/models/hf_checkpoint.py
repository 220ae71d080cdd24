"""Weights from a Hugging Face folder into this rank's part of a Megatron-Core model.

A rank reads the slices that it holds and nothing else, whatever the layout. Nothing is skipped in silence: a weight
that the table does not know, a missing one, and one of another shape each raise with their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from megatron_ssd.models.hf_folder import HFWeights, read_hf_config
from megatron_ssd.models.weights import Rule, all_hf_names, find_rule
from megatron_ssd.progress import progress

_SHOWN = 5  # names in a message


class MappedParameter(NamedTuple):
    """A parameter of this rank, its row in the table, and the Hugging Face weights that it is made of."""

    name: str
    parameter: torch.nn.Parameter
    rule: Rule
    hf_names: tuple[str, ...]


def load_hf_weights(
    model_chunks: Sequence[GPTModel], model: ModelConfig, parallel: ParallelConfig, folder: Path
) -> None:
    """Fill every parameter of this rank from ``folder``, converted to the parameter's own type.

    Needs process groups that match ``parallel``. Any tensor, pipeline, virtual pipeline and expert parallel layout.

    Raises:
        UserError: ``config.json`` and ``model`` differ, or weights are missing, unknown or misshapen.
    """
    family = family_of(model.model_type)
    family.check_hf_config(read_hf_config(folder), model, source=folder / "config.json")
    weights = HFWeights(folder)
    expected = all_hf_names(family.table(model), model)
    _refuse("missing", expected - weights.names, folder)
    _refuse("unknown", weights.names - expected - family.ignored_hf_names(model), folder)
    mapped = [row for chunk in model_chunks for row in map_parameters(chunk, model)]
    shown = progress(mapped, desc=f"reading {folder.name}", unit="weight") if dist.get_rank() == 0 else mapped
    with torch.no_grad():
        for row in shown:
            row.parameter.copy_(_read_slice(row, weights, model, parallel))


def map_parameters(chunk: GPTModel, model: ModelConfig) -> Iterator[MappedParameter]:
    """Each parameter of this rank's ``chunk`` with the Hugging Face weights of its global layer and expert."""
    table = family_of(model.model_type).table(model)
    for name, parameter in chunk.named_parameters():
        rule, numbers = find_rule(table, name)
        if "layer" in numbers:
            numbers["layer"] = chunk.decoder.layers[numbers["layer"]].layer_number - 1
        if rule.is_expert:
            local_experts = (model.num_experts or 0) // parallel_state.get_expert_model_parallel_world_size()
            numbers["expert"] += parallel_state.get_expert_model_parallel_rank() * local_experts
        yield MappedParameter(name, parameter, rule, rule.hf_names(numbers))


def _read_slice(row: MappedParameter, weights: HFWeights, model: ModelConfig, parallel: ParallelConfig) -> Tensor:
    """This rank's value of a parameter, after its Hugging Face weights were seen to have the right shapes."""
    if row.rule.is_expert:
        parts, part = parallel.expert_tensor_parallel_size, parallel_state.get_expert_tensor_parallel_rank()
    else:
        parts, part = parallel.tensor_model_parallel_size, parallel_state.get_tensor_model_parallel_rank()
    split = row.rule.split
    shape = tuple(size * parts if dim == split else size for dim, size in enumerate(row.parameter.shape))
    for name, wanted in zip(row.hf_names, row.rule.hf_shapes(shape, model), strict=True):
        found = weights.shape(name)
        if found != wanted:
            raise UserError(
                f"weight {name} in {weights.folder}",
                rule=f"has shape {list(found)} and the model wants {list(wanted)}",
                fix="choose the model group that goes with model.path",
            )
    slices = [weights.read(name, dim=split, part=part, parts=parts) for name in row.hf_names]
    return row.rule.merge(slices, model)


def _refuse(kind: str, names: set[str], folder: Path) -> None:
    if names:
        shown = ", ".join(sorted(names)[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        raise UserError(
            f"folder {folder}",
            rule=f"{len(names)} weight(s) {kind}: {shown}",
            fix="choose the model group that goes with model.path, or download that model again",
        )
