"""A model is a table: which Megatron-Core weight is made of which Hugging Face weights, and how.

One table serves both directions. A rule names one Megatron weight by a pattern, the Hugging Face weights it is made of,
and the dimension along which tensor parallelism splits it; its kind says how parts merge and divide. Merging a rank's
slices of the parts gives that rank's slice of the whole, for every kind here, which is what lets a rank read its own
slices alone.

Patterns hold ``{layer}`` and ``{expert}``, which stand for numbers. A pattern with ``{expert}`` belongs to one expert
of a mixture and is split over the expert-tensor-parallel group; others over the tensor-parallel group.

Shape suffixes: R rows (outputs), H columns (inputs).
"""

from __future__ import annotations

import functools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.errors import UserError

Shape = tuple[int, ...]


class UnmappedWeightError(UserError):
    """A weight that no row of the model family's table knows."""


@dataclass(frozen=True)
class ParamMapping(ABC):
    """One row.

    Args:
        megatron: pattern of the parameter's name in ``GPTModel``.
        hf: patterns of the Hugging Face weights it is made of, in the order that the kind wants.
        shard_dim: dimension that tensor parallelism splits; None where every rank holds the whole.
    """

    megatron: str
    hf: tuple[str, ...]
    shard_dim: int | None = None

    @property
    def is_expert(self) -> bool:
        """Whether the weight belongs to one expert."""
        return "{expert}" in self.megatron

    def match(self, name: str) -> dict[str, int] | None:
        """The numbers that ``name`` has at the pattern's places; None where it does not fit."""
        found = _regex(self.megatron).fullmatch(name)
        return {key: int(number) for key, number in found.groupdict().items()} if found else None

    def hf_names(self, numbers: dict[str, int]) -> tuple[str, ...]:
        """Names of the Hugging Face weights for a layer (and expert)."""
        return tuple(pattern.format(**numbers) for pattern in self.hf)

    @abstractmethod
    def merge(self, parts: Sequence[Tensor], model: ModelConfig) -> Tensor:
        """Hugging Face tensors, or a rank's slices of them along ``shard_dim``, to the Megatron tensor or its slice."""

    @abstractmethod
    def split(self, weight: Tensor, model: ModelConfig) -> tuple[Tensor, ...]:
        """The inverse of ``merge``."""

    @abstractmethod
    def hf_shapes(self, shape: Shape, model: ModelConfig) -> tuple[Shape, ...]:
        """Shapes of the whole Hugging Face tensors, given the shape of the whole Megatron tensor."""


@functools.cache
def _regex(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", pattern)
    return re.compile("".join(f"(?P<{part}>\\d+)" if i % 2 else re.escape(part) for i, part in enumerate(parts)))


class DirectMapping(ParamMapping):
    """The same tensor under another name."""

    @override
    def merge(self, parts: Sequence[Tensor], model: ModelConfig) -> Tensor:
        (weight,) = parts
        return weight

    @override
    def split(self, weight: Tensor, model: ModelConfig) -> tuple[Tensor, ...]:
        return (weight,)

    @override
    def hf_shapes(self, shape: Shape, model: ModelConfig) -> tuple[Shape, ...]:
        return (shape,)


class VocabularyMapping(DirectMapping):
    """A row for each token. Tensor parallelism may pad the Megatron tensor with rows that no token has."""

    @override
    def split(self, weight: Tensor, model: ModelConfig) -> tuple[Tensor, ...]:
        return (weight[: model.vocab_size],)

    @override
    def hf_shapes(self, shape: Shape, model: ModelConfig) -> tuple[Shape, ...]:
        return ((model.vocab_size, *shape[1:]),)


class QkvMapping(ParamMapping):
    """Query, key and value projections in one, interleaved by key/value group.

    Megatron-Core puts the rows of group 0 first: its queries, its key, its value; then group 1. With 4 query heads, 2
    groups and head dimension d the rows are q0 q1 k0 v0 q2 q3 k1 v1, d of each.
    """

    @override
    def merge(self, parts: Sequence[Tensor], model: ModelConfig) -> Tensor:
        q_RH, k_RH, v_RH = parts
        groups = k_RH.shape[0] // model.head_dim
        by_group = [part.unflatten(0, (groups, -1)) for part in (q_RH, k_RH, v_RH)]
        return torch.cat(by_group, dim=1).flatten(0, 1)

    @override
    def split(self, weight: Tensor, model: ModelConfig) -> tuple[Tensor, ...]:
        heads = model.num_attention_heads // model.num_key_value_heads
        rows = [heads * model.head_dim, model.head_dim, model.head_dim]
        by_group = weight.unflatten(0, (-1, sum(rows))).split(rows, dim=1)
        return tuple(part.flatten(0, 1) for part in by_group)

    @override
    def hf_shapes(self, shape: Shape, model: ModelConfig) -> tuple[Shape, ...]:
        heads = (model.num_attention_heads, model.num_key_value_heads, model.num_key_value_heads)
        return tuple((count * model.head_dim, *shape[1:]) for count in heads)


class GateUpMapping(ParamMapping):
    """Gate and up projections of SwiGLU, one above the other. Each tensor-parallel rank stacks its own two slices."""

    @override
    def merge(self, parts: Sequence[Tensor], model: ModelConfig) -> Tensor:
        gate_RH, up_RH = parts
        return torch.cat([gate_RH, up_RH])

    @override
    def split(self, weight: Tensor, model: ModelConfig) -> tuple[Tensor, ...]:
        return weight.chunk(2)

    @override
    def hf_shapes(self, shape: Shape, model: ModelConfig) -> tuple[Shape, ...]:
        return ((shape[0] // 2, *shape[1:]),) * 2


class Match(NamedTuple):
    """A Megatron name, the row that it fits, and the numbers in it."""

    mapping: ParamMapping
    numbers: dict[str, int]


def find_mapping(table: Iterable[ParamMapping], name: str) -> Match:
    """The row for a Megatron parameter. Raises ``UnmappedWeightError``."""
    for mapping in table:
        numbers = mapping.match(name)
        if numbers is not None:
            return Match(mapping, numbers)
    raise UnmappedWeightError(
        f"Megatron-Core weight {name}",
        rule="no row of the model family's table fits it",
        fix="add a row to the family in megatron_ssd/models/families",
    )


def all_hf_names(table: Iterable[ParamMapping], model: ModelConfig) -> set[str]:
    """Every Hugging Face weight of the whole model."""
    return {
        name
        for mapping in table
        for layer in range(model.num_hidden_layers if "{layer}" in mapping.megatron else 1)
        for expert in range((model.num_experts or 0) if mapping.is_expert else 1)
        for name in mapping.hf_names({"layer": layer, "expert": expert})
    }


# Where the local layer spec and TransformerEngine's spec name a parameter differently, there is a mapping for each. A
# model has one of the two.
_MEGATRON = "decoder.layers.{layer}"
_HF = "model.layers.{layer}"

EMBEDDING_AND_FINAL_NORM = (
    VocabularyMapping("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), shard_dim=0),
    DirectMapping("decoder.final_layernorm.weight", ("model.norm.weight",)),
)

ATTENTION = (
    DirectMapping(f"{_MEGATRON}.input_layernorm.weight", (f"{_HF}.input_layernorm.weight",)),
    DirectMapping(f"{_MEGATRON}.self_attention.linear_qkv.layer_norm_weight", (f"{_HF}.input_layernorm.weight",)),
    QkvMapping(
        f"{_MEGATRON}.self_attention.linear_qkv.weight",
        (f"{_HF}.self_attn.q_proj.weight", f"{_HF}.self_attn.k_proj.weight", f"{_HF}.self_attn.v_proj.weight"),
        shard_dim=0,
    ),
    DirectMapping(f"{_MEGATRON}.self_attention.linear_proj.weight", (f"{_HF}.self_attn.o_proj.weight",), shard_dim=1),
)

QK_NORM = (
    DirectMapping(f"{_MEGATRON}.self_attention.q_layernorm.weight", (f"{_HF}.self_attn.q_norm.weight",)),
    DirectMapping(f"{_MEGATRON}.self_attention.k_layernorm.weight", (f"{_HF}.self_attn.k_norm.weight",)),
)

DENSE_MLP = (
    DirectMapping(f"{_MEGATRON}.pre_mlp_layernorm.weight", (f"{_HF}.post_attention_layernorm.weight",)),
    DirectMapping(f"{_MEGATRON}.mlp.linear_fc1.layer_norm_weight", (f"{_HF}.post_attention_layernorm.weight",)),
    GateUpMapping(
        f"{_MEGATRON}.mlp.linear_fc1.weight",
        (f"{_HF}.mlp.gate_proj.weight", f"{_HF}.mlp.up_proj.weight"),
        shard_dim=0,
    ),
    DirectMapping(f"{_MEGATRON}.mlp.linear_fc2.weight", (f"{_HF}.mlp.down_proj.weight",), shard_dim=1),
)

_EXPERT = f"{_HF}.mlp.experts.{{expert}}"

EXPERTS = (
    DirectMapping(f"{_MEGATRON}.pre_mlp_layernorm.weight", (f"{_HF}.post_attention_layernorm.weight",)),
    DirectMapping(f"{_MEGATRON}.mlp.router.weight", (f"{_HF}.mlp.gate.weight",)),
    *(
        mapping
        # One module an expert in the local spec, one grouped module with numbered weights in TransformerEngine's.
        for fc1, fc2 in (
            ("local_experts.{expert}.linear_fc1.weight", "local_experts.{expert}.linear_fc2.weight"),
            ("linear_fc1.weight{expert}", "linear_fc2.weight{expert}"),
        )
        for mapping in (
            GateUpMapping(
                f"{_MEGATRON}.mlp.experts.{fc1}",
                (f"{_EXPERT}.gate_proj.weight", f"{_EXPERT}.up_proj.weight"),
                shard_dim=0,
            ),
            DirectMapping(f"{_MEGATRON}.mlp.experts.{fc2}", (f"{_EXPERT}.down_proj.weight",), shard_dim=1),
        )
    ),
)
