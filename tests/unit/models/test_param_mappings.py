"""Tests the parameter mappings, without a model."""

import dataclasses

import pytest
import torch

from megatron_ssd.models.mappings import (
    DirectMapping,
    GateUpMapping,
    ParamMapping,
    QkvMapping,
    UnmappedWeightError,
    VocabularyMapping,
    all_hf_names,
    find_mapping,
    parameter_mappings,
)
from tests.helpers.tiny_hf import MODELS

MODEL = dataclasses.replace(MODELS["qwen3"], num_attention_heads=8, num_key_value_heads=4, head_dim=2)
QKV = QkvMapping("qkv", ("q", "k", "v"), shard_dim=0)


def test_the_order_of_the_rows_of_qkv() -> None:
    model = dataclasses.replace(MODEL, num_attention_heads=4, num_key_value_heads=2, head_dim=2)
    q, k, v = torch.arange(8).view(8, 1), torch.arange(10, 14).view(4, 1), torch.arange(20, 24).view(4, 1)
    assert QKV.merge([q, k, v], model).flatten().tolist() == [0, 1, 2, 3, 10, 11, 20, 21, 4, 5, 6, 7, 12, 13, 22, 23]


@pytest.mark.parametrize(
    ("mapping", "rows"),
    [
        (DirectMapping("a", ("b",), shard_dim=0), (16,)),
        (VocabularyMapping("a", ("b",), shard_dim=0), (64,)),
        (GateUpMapping("a", ("b", "c"), shard_dim=0), (12, 12)),
        (QKV, (16, 8, 8)),
    ],
)
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("columns", [(6,), ()], ids=["matrix", "bias"])
def test_split_undoes_merge_and_slices_merge_to_shards(
    mapping: ParamMapping, rows: tuple[int, ...], parts: int, columns: tuple[int, ...]
) -> None:
    tensors = [torch.randn(count, *columns) for count in rows]
    full = mapping.merge(tensors, MODEL)
    assert all(map(torch.equal, mapping.split(full, MODEL), tensors))
    assert mapping.hf_shapes(tuple(full.shape), MODEL) == tuple((count, *columns) for count in rows)
    slices = [mapping.merge([tensor.chunk(parts)[part] for tensor in tensors], MODEL) for part in range(parts)]
    if not isinstance(mapping, GateUpMapping):  # each rank concatenates its two slices, so shards are not contiguous
        assert torch.equal(torch.cat(slices), full)
    for part, piece in enumerate(slices):
        expected = [tensor.chunk(parts)[part] for tensor in tensors]
        assert all(map(torch.equal, mapping.split(piece, MODEL), expected))


@pytest.mark.parametrize(
    "name",
    [
        "decoder.layers.11.self_attention.linear_qkv.layer_norm_weight",
        "decoder.layers.11.input_layernorm.weight",
        "decoder.layers.11.mlp.experts.local_experts.7.linear_fc1.weight",
        "decoder.layers.11.mlp.experts.linear_fc1.weight7",
    ],
)
def test_both_layer_specs_have_mappings(name: str) -> None:
    mapping, numbers = find_mapping(parameter_mappings(MODELS["qwen3_moe"]), name)
    assert numbers == ({"layer": 11, "expert": 7} if "experts" in name else {"layer": 11})
    assert all("layers.11." in hf_name for hf_name in mapping.hf_names(numbers))


def test_both_layer_specs_use_the_same_hf_weights() -> None:
    """Compares names of TransformerEngine's grouped experts and fused norms with those of the local layers."""
    mappings = parameter_mappings(MODELS["qwen3_moe"])
    pairs = {
        "decoder.layers.1.input_layernorm.weight": "decoder.layers.1.self_attention.linear_qkv.layer_norm_weight",
        "decoder.layers.1.mlp.experts.local_experts.3.linear_fc1.weight":
            "decoder.layers.1.mlp.experts.linear_fc1.weight3",
        "decoder.layers.1.mlp.experts.local_experts.3.linear_fc2.weight":
            "decoder.layers.1.mlp.experts.linear_fc2.weight3",
    }  # fmt: skip
    for local, fused in pairs.items():
        ours, theirs = find_mapping(mappings, local), find_mapping(mappings, fused)
        assert ours.numbers == theirs.numbers
        assert ours.mapping.hf_names(ours.numbers) == theirs.mapping.hf_names(theirs.numbers)
        assert (type(ours.mapping), ours.mapping.shard_dim, ours.mapping.is_expert) == (
            type(theirs.mapping), theirs.mapping.shard_dim, theirs.mapping.is_expert,
        )  # fmt: skip


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(UnmappedWeightError, match=r"decoder\.layers\.0\.self_attention\.linear_qkv\.bias"):
        find_mapping(parameter_mappings(MODELS["qwen3"]), "decoder.layers.0.self_attention.linear_qkv.bias")


def test_number_of_hugging_face_weights() -> None:
    moe = MODELS["qwen3_moe"]
    names = all_hf_names(moe)
    assert len(names) == 3 + 4 * (4 + 2 + 2 + 1 + 4 * 3)  # projections, q/k norms, norms, router, experts
    tied = MODELS["llama_tied"]
    assert "lm_head.weight" not in all_hf_names(tied)
