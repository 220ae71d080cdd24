"""Two real processes: each rank's slices are the right parts of the whole, and any layout's checkpoint gives it back.

Where a slice belongs is Megatron-Core's own word (``sharded_state_dict``), not this project's table.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_ssd.config.parallel import ClusterConfig, ParallelConfig
from megatron_ssd.export.checkpoint import load_weights
from megatron_ssd.export.model_weights import ModelWeights
from megatron_ssd.models.build import build_model
from megatron_ssd.models.hf_checkpoint import load_hf_weights
from megatron_ssd.models.initialization import local_shards
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import process_groups
from tests.distributed.export_worker import LAYOUTS, PRECISION
from tests.tiny_hf import MODELS, write_hf_folder

ROOT = Path(__file__).parents[2]
ONE = ParallelConfig()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a Hugging Face model for each name in use, and what two processes left for each layout."""
    root = tmp_path_factory.mktemp("layouts")
    for name in {name for name, _ in LAYOUTS.values()}:
        write_hf_folder(root / name, MODELS[name])
    # timeout(1) stops torchrun in a way that it passes on to its workers; Python's own would leave them behind.
    command = ["timeout", "250", sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               "-m", "tests.distributed.export_worker", str(root)]  # fmt: skip
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return root


def whole_parameters(folder: Path, name: str) -> dict[tuple[object, ...], Tensor]:
    """(key, layer and expert) -> the whole parameter, as one process loads it."""
    whole: dict[tuple[object, ...], Tensor] = {}
    with process_groups(ONE, device=prepare_device(ClusterConfig(device="cpu"))):
        chunks = build_model(MODELS[name], ONE, PRECISION, device="cpu", seed=None)
        load_hf_weights(chunks, MODELS[name], ONE, folder)
        for shard in local_shards(chunks[0]):
            place = (shard.key, *shard.global_offset[: shard.prepend_axis_num])
            shape = shard.global_shape[shard.prepend_axis_num :]
            target = whole.setdefault(place, torch.full(shape, torch.nan))
            target[part(shard.global_offset[shard.prepend_axis_num :], shard.data, shape)] = shard.data.view(
                -1, *shape[1:]
            )
    return whole


def part(start: tuple[int, ...], data: Tensor, shape: tuple[int, ...]) -> tuple[slice, ...]:
    sizes = data.shape[-len(shape) :]
    return tuple(slice(begin, begin + size) for begin, size in zip(start, sizes, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_rank_holds_its_slices_of_the_whole(loaded: Path, layout: str) -> None:
    name, _ = LAYOUTS[layout]
    whole = whole_parameters(loaded / name, name)
    assert not any(tensor.isnan().any() for tensor in whole.values())
    seen = set()
    for rank in range(2):
        for key, numbers, start, data in torch.load(loaded / f"{layout}-{rank}.pt"):
            expected = whole[key, *numbers]
            assert torch.equal(expected[part(start, data, expected.shape)].reshape(data.shape), data), (key, rank)
            seen.add((key, *numbers))
    assert seen == set(whole)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_process_gets_the_folder_back_from_the_checkpoint(loaded: Path, layout: str) -> None:
    name, _ = LAYOUTS[layout]
    with process_groups(ONE, device=prepare_device(ClusterConfig(device="cpu"))):
        (chunk,) = build_model(MODELS[name], ONE, PRECISION, device="cpu", seed=None)
        load_weights(loaded / layout, chunk)
        ModelWeights(chunk, MODELS[name]).check_folder(loaded / name)
