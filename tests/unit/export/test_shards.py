"""Tests for the writing of safetensors files."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from megatron_ssd.export.shards import TensorSpec, is_written, plan_shards, write_index, write_shard

VALUES = {
    "a": torch.randn(3, 5),
    "b": torch.randn(7).bfloat16(),
    "c": torch.randn(2, 2, 2).transpose(0, 2),  # not contiguous
}
SPECS = [TensorSpec(name, tuple(value.shape), value.dtype) for name, value in VALUES.items()]


def test_safetensors_reads_what_was_written(tmp_path: Path) -> None:
    (shard,) = plan_shards(SPECS, max_bytes=1000)
    assert shard.file_name == "model.safetensors"
    write_shard(tmp_path, shard, VALUES.__getitem__)
    write_index(tmp_path, [shard])
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert list(file.keys()) == list(VALUES)
        assert file.metadata() == {"format": "pt"}
        assert all(torch.equal(file.get_tensor(name), value) for name, value in VALUES.items())
        assert file.get_tensor("b").dtype == torch.bfloat16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors"]


def test_tensors_are_distributed_in_order_below_the_limit(tmp_path: Path) -> None:
    sizes = [4, 4, 8, 40, 4]
    specs = [TensorSpec(str(i), (size // 4,), torch.float32) for i, size in enumerate(sizes)]
    shards = plan_shards(specs, max_bytes=16)
    assert [[spec.name for spec in shard.specs] for shard in shards] == [["0", "1", "2"], ["3"], ["4"]]
    assert [shard.file_name for shard in shards] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    write_index(tmp_path, shards)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    assert index["weight_map"]["3"] == "model-00002-of-00003.safetensors"


def test_only_a_complete_file_of_the_same_plan_counts_as_written(tmp_path: Path) -> None:
    (shard,) = plan_shards(SPECS, max_bytes=1000)
    (other,) = plan_shards([*SPECS[:2], TensorSpec("d", SPECS[2].shape, SPECS[2].dtype)], max_bytes=1000)
    path = tmp_path / shard.file_name
    assert not is_written(tmp_path, shard)
    write_shard(tmp_path, shard, VALUES.__getitem__)
    assert is_written(tmp_path, shard)
    assert not is_written(tmp_path, other)  # same length, other names
    path.write_bytes(path.read_bytes()[:-1])
    assert not is_written(tmp_path, shard)
