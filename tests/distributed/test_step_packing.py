"""Tests that packing the samples of an iteration does not change what is trained.

The reference is one process without packing, in fp32: the same samples one by one. Loss, gradient norm and, after ten
iterations, every weight agree to rounding, in each layout and after resuming in the middle of an epoch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import process_groups
from megatron_ssd.training.trainer import build_trainer
from tests.distributed.step_packing_worker import ITERATIONS, LAYOUTS, RESUMED, SAVED, config_of, resume
from tests.helpers.devices import without_gpu
from tests.helpers.training_run import CPU, DEEP, EXACT, MOE

WORKER = "step_packing_worker"
LOSS, GRAD_NORM, WEIGHT = 1e-6, 1e-5, 1e-5
NAMES = ["deep-one", *(f"moe-{name}" if name == "ep2" else f"deep-{name}" for name in LAYOUTS)]
pytestmark = without_gpu


@pytest.fixture(scope="module")
def runs(root: Path) -> Path:
    """The worker's results, and one more run that is resumed in one process here."""
    with process_groups(ParallelConfig(), device=prepare_device(CPU, EXACT)):
        resume(root, f"deep-cp2-{SAVED}", config_of(root, "one"))
    return root


def read(root: Path, name: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads((root / f"{name}.json").read_text())
    return records


def weights(root: Path, name: str) -> dict[str, torch.Tensor]:
    """The weights of the last iteration, loaded in one process."""
    config = config_of(root, "one", MOE if name.startswith("moe") else DEEP)
    with process_groups(ParallelConfig(), device=prepare_device(CPU, EXACT)):
        trainer = build_trainer(config, root / name, "cpu")
        assert trainer.state.iteration == ITERATIONS
        return {key: value.clone() for key, value in trainer.state.models[0].named_parameters()}


@pytest.mark.parametrize("name", [*NAMES, *(f"deep-{saved}-{SAVED}" for saved in (*RESUMED, "cp2"))])
def test_packed_samples_train_like_unpacked_ones(runs: Path, name: str) -> None:
    reference = f"{name.partition('-')[0]}-unpacked"
    found = read(runs, name)
    expected = read(runs, reference)[ITERATIONS - len(found) :]
    for key in ("iteration", "samples", "tokens", "valid_tokens"):
        assert [record[key] for record in found] == [record[key] for record in expected]
    assert [r["loss"] for r in found] == pytest.approx([r["loss"] for r in expected], rel=LOSS)
    assert [r["grad_norm"] for r in found] == pytest.approx([r["grad_norm"] for r in expected], rel=GRAD_NORM)
    of_reference = weights(runs, reference)
    for key, value in weights(runs, name).items():
        assert (value - of_reference[key]).abs().max() < WEIGHT, key


@pytest.mark.parametrize("name", NAMES)
def test_packing_computes_fewer_tokens(runs: Path, name: str) -> None:
    packed, unpacked = read(runs, name), read(runs, f"{name.partition('-')[0]}-unpacked")
    assert sum(r["computed_tokens"] for r in packed) < sum(r["computed_tokens"] for r in unpacked)
