"""Parameter mappings: how Hugging Face tensors make up a Megatron-Core parameter.

One mapping serves both directions. It has a pattern for the name of a Megatron-Core parameter, patterns for the Hugging
Face tensors, and the dimension along which tensor parallelism shards the parameter; its class merges and splits the
tensors. For every class here, merging a rank's slices of the Hugging Face tensors gives that rank's shard of the
parameter, so that a rank can read its own slices only.

Patterns contain ``{layer}`` and ``{expert}``, which stand for numbers. A pattern with ``{expert}`` belongs to one
expert of a mixture and is sharded over the expert-tensor-parallel group; others over the tensor-parallel group.

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

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class UnmappedWeightError(UserError):
    """A parameter without a mapping."""


@dataclass(frozen=True)
class ParamMapping(ABC):
    """The mapping of one Megatron-Core parameter.

    Args:
        megatron: pattern of the parameter's name in ``GPTModel``.
        hf: patterns of the names of the Hugging Face tensors, in the order that the class expects.
        shard_dim: dimension that tensor parallelism shards; None if every rank holds the full parameter.
    """

    megatron: str
    hf: tuple[str, ...]
    shard_dim: int | None = None

    @property
    def is_expert(self) -> bool:
        """Whether the parameter belongs to one expert."""
        return "{expert}" in self.megatron

    def match(self, name: str) -> dict[str, int] | None:
        """The layer and expert numbers in ``name``; None if it does not match the pattern."""
        found = _regex(self.megatron).fullmatch(name)
        return {key: int(number) for key, number in found.groupdict().items()} if found else None

    def hf_names(self, numbers: dict[str, int]) -> tuple[str, ...]:
        """Names of the Hugging Face tensors for a layer (and expert)."""
        return tuple(pattern.format(**numbers) for pattern in self.hf)

    @abstractmethod
    def merge(self, parts: Sequence[Tensor], model: ModelConfig) -> Tensor:
        """Merge Hugging Face tensors, or a rank's slices along ``shard_dim``, to the parameter or the rank's shard."""

    @abstractmethod
    def split(self, weight: Tensor, model: ModelConfig) -> tuple[Tensor, ...]:
        """The inverse of ``merge``."""

    @abstractmethod
    def hf_shapes(self, shape: Shape, model: ModelConfig) -> tuple[Shape, ...]:
        """Shapes of the full Hugging Face tensors, from the shape of the full parameter."""


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
    """A tensor with one row per token.

    Tensor parallelism may pad the parameter with rows (see ``models.vocabulary``).
    """

    @override
    def split(self, weight: Tensor, model: ModelConfig) -> tuple[Tensor, ...]:
        return (weight[: model.vocab_size],)

    @override
    def hf_shapes(self, shape: Shape, model: ModelConfig) -> tuple[Shape, ...]:
        return ((model.vocab_size, *shape[1:]),)


class QkvMapping(ParamMapping):
    """Query, key and value projections, or their biases, in one parameter, interleaved by key/value group.

    Megatron-Core stores the rows of group 0 first: its queries, its key, its value; then group 1. With 4 query heads, 2
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
    """Gate and up projections of SwiGLU, concatenated. Each tensor-parallel rank concatenates its own two slices."""

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
    """The mapping of a parameter name, and the numbers in the name."""

    mapping: ParamMapping
    numbers: dict[str, int]


def find_mapping(mappings: Iterable[ParamMapping], name: str) -> Match:
    """The mapping for a parameter name. Raises ``UnmappedWeightError``."""
    for mapping in mappings:
        numbers = mapping.match(name)
        if numbers is not None:
            return Match(mapping, numbers)
    raise UnmappedWeightError(
        f"Megatron-Core parameter {name}",
        rule="no mapping is known for it",
        fix="add a mapping to megatron_ssd/models/mappings.py",
    )


# Where the local layer spec and TransformerEngine's spec name a parameter differently, there is a mapping for each. A
# model has one of the two.
_MEGATRON = "decoder.layers.{layer}"
_HF = "model.layers.{layer}"

EMBEDDING_AND_FINAL_NORM = (
    VocabularyMapping("embedding.word_embeddings.weight", (EMBEDDING,), shard_dim=0),
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

QKV_BIAS = (
    QkvMapping(
        f"{_MEGATRON}.self_attention.linear_qkv.bias",
        (f"{_HF}.self_attn.q_proj.bias", f"{_HF}.self_attn.k_proj.bias", f"{_HF}.self_attn.v_proj.bias"),
        shard_dim=0,
    ),
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
        # The local spec has one module per expert, TransformerEngine's one grouped module with numbered weights.
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


def parameter_mappings(model: ModelConfig) -> tuple[ParamMapping, ...]:
    """The mappings of all parameters of ``model``.

    With tied embeddings the last pipeline stage's output layer is a copy of the embedding.
    """
    return (
        *EMBEDDING_AND_FINAL_NORM,
        *ATTENTION,
        *(QKV_BIAS if model.has_qkv_bias else ()),
        *(QK_NORM if model.has_qk_norm else ()),
        *(EXPERTS if model.is_moe else DENSE_MLP),
        VocabularyMapping("output_layer.weight", (EMBEDDING if model.tie_word_embeddings else HEAD,), shard_dim=0),
    )


def all_hf_names(model: ModelConfig) -> set[str]:
    """Names of all Hugging Face tensors of the full model."""
    return {
        name
        for mapping in parameter_mappings(model)
        for layer in range(model.num_hidden_layers if "{layer}" in mapping.megatron else 1)
        for expert in range((model.num_experts or 0) if mapping.is_expert else 1)
        for name in mapping.hf_names({"layer": layer, "expert": expert})
    }


def ignored_hf_names(model: ModelConfig) -> set[str]:
    """Weights that a folder may have and that no parameter is made of.

    These are a copy of tied embeddings (``check_tied_head`` compares it), and rotary frequencies, which older versions
    of transformers saved with the weights and no version reads.
    """
    frequencies = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(model.num_hidden_layers)}
    return {"model.rotary_emb.inv_freq", *frequencies, *((HEAD,) if model.tie_word_embeddings else ())}
