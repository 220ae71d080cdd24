"""Tests for the loading and export of Hugging Face weights in layouts of two processes.

The expected offsets of shards come from Megatron-Core (``sharded_state_dict``), not from this project's mappings.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from megatron_ssd.config.cluster import ClusterConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.tools import ConvertConfig
from megatron_ssd.export.convert import megatron_to_hf
from megatron_ssd.models.build import build_model
from megatron_ssd.models.hf_checkpoint import load_hf_weights
from megatron_ssd.models.hf_weights import HFWeights
from megatron_ssd.models.initialization import local_shards
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import process_groups
from tests.distributed.export_worker import LAYOUTS, NAMES, PRECISION, TOKENS_BS
from tests.helpers.tiny_hf import MODELS

ONE = ParallelConfig()
WORKER = "export_worker"
TOLERANCE = 1e-5  # relative to the largest logit, as in tests/unit/models/test_hf_checkpoint.py


@pytest.fixture(scope="module")
def loaded(root: Path) -> Path:
    """The worker's results for the Hugging Face folders and their conversions."""
    return root


@pytest.fixture(scope="module")
def full(loaded: Path) -> dict[str, dict[tuple[object, ...], Tensor]]:
    """Model -> (key, layer, expert) -> the full parameter, as one process loads it."""
    with process_groups(ONE, device=prepare_device(ClusterConfig(device="cpu"))):
        return {name: full_parameters(loaded / name, name) for name in NAMES}


def full_parameters(folder: Path, name: str) -> dict[tuple[object, ...], Tensor]:
    full: dict[tuple[object, ...], Tensor] = {}
    chunks = build_model(MODELS[name], ONE, PRECISION, device="cpu", seed=None)
    load_hf_weights(chunks, MODELS[name], ONE, folder)
    for shard in local_shards(chunks[0]):
        name_and_index = (shard.key, *shard.global_offset[: shard.prepend_axis_num])
        shape = shard.global_shape[shard.prepend_axis_num :]
        target = full.setdefault(name_and_index, torch.full(shape, torch.nan))
        target[part(shard.global_offset[shard.prepend_axis_num :], shard.data, shape)] = shard.data.view(-1, *shape[1:])
    return full


def part(start: tuple[int, ...], data: Tensor, shape: tuple[int, ...]) -> tuple[slice, ...]:
    sizes = data.shape[-len(shape) :]
    return tuple(slice(begin, begin + size) for begin, size in zip(start, sizes, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_rank_holds_its_shards(
    loaded: Path, full: dict[str, dict[tuple[object, ...], Tensor]], layout: str
) -> None:
    name, _ = LAYOUTS[layout]
    seen = set()
    for rank in range(2):
        held, _ = torch.load(loaded / f"{layout}-{rank}.pt")
        for key, numbers, start, data in held:
            expected = full[name][key, *numbers]
            if key.startswith(("embedding", "output_layer")):  # an odd vocabulary is padded with a row of zeros
                expected = torch.cat([expected, expected.new_zeros(len(expected) % 2, expected.shape[1])])
            assert torch.equal(expected[part(start, data, expected.shape)].reshape(data.shape), data), (key, rank)
            seen.add((key, *numbers))
    assert seen == set(full[name])


def replicated_bytes(name: str, layout: str) -> int:
    """Bytes that both ranks of a layout read, from the model's shape."""
    model, sizes = MODELS[name], LAYOUTS[layout][1]
    norms = model.num_hidden_layers * (2 * model.hidden_size + 2 * model.head_dim * model.has_qk_norm)
    embedding = model.vocab_size * model.hidden_size
    routers = model.num_hidden_layers * (model.num_experts or 0) * model.hidden_size
    experts = (
        3 * model.num_hidden_layers * (model.num_experts or 0) * model.hidden_size * (model.moe_intermediate_size or 0)
    )
    if "pipeline_model_parallel_size" in sizes:
        return 4 * embedding * model.tie_word_embeddings
    if "tensor_model_parallel_size" not in sizes:  # only expert parallelism: everything but the experts
        return 4 * (model.num_parameters() - experts)
    return 4 * (norms + model.hidden_size + routers)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_read_each_byte_once_unless_both_hold_it(loaded: Path, layout: str) -> None:
    name, _ = LAYOUTS[layout]
    read = [torch.load(loaded / f"{layout}-{rank}.pt")[1] for rank in range(2)]
    assert sum(read) == 4 * MODELS[name].num_parameters() + replicated_bytes(name, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_equal_transformers(loaded: Path, layout: str) -> None:
    name, _ = LAYOUTS[layout]
    expected_BSV = np.load(loaded / name / "logits.npy")
    difference = np.abs(np.load(loaded / f"{layout}.npy") - expected_BSV).max() / np.abs(expected_BSV).max()
    assert difference < TOLERANCE, f"largest difference {difference:.2e}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_converted_checkpoint_gives_the_same_logits(loaded: Path, layout: str) -> None:
    assert json.loads((loaded / f"{layout}.json").read_text())["same_when_converted"] is True


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_does_not_change_the_loss(loaded: Path, layout: str) -> None:
    name, _ = LAYOUTS[layout]
    logits_BSV = torch.from_numpy(np.load(loaded / name / "logits.npy")).double()
    expected = torch.nn.functional.cross_entropy(
        logits_BSV.flatten(0, 1), TOKENS_BS.roll(-1, dims=1).flatten(), reduction="sum"
    )
    assert json.loads((loaded / f"{layout}.json").read_text())["loss"] == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_converts_back_to_the_hugging_face_folder(loaded: Path, layout: str, tmp_path: Path) -> None:
    name, _ = LAYOUTS[layout]
    back = tmp_path / "back"
    megatron_to_hf(
        ConvertConfig(direction="megatron_to_hf", megatron=str(loaded / layout), hf=str(back),
                      hf_assets=str(loaded / name), verify=True)
    )  # fmt: skip
    ours, theirs = HFWeights(back), HFWeights(loaded / name)
    assert ours.names == theirs.names
    assert all(torch.equal(ours.read(key), theirs.read(key)) for key in theirs.names)
