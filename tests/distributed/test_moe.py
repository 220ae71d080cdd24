"""Tests for the training of mixtures of experts in real processes.

The runs are two iterations of fp32 on the CPU, with tolerances as in test_loss_curves. Not covered: grouped GEMM and
DeepEP's dispatcher, which are CUDA kernels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.moe_worker import CASES, ITERATIONS
from tests.helpers.devices import without_gpu
from tests.helpers.training_run import MOE

LOSS_TOLERANCE, GRAD_NORM_TOLERANCE = 1e-6, 5e-6
WORKER = "moe_worker"
pytestmark = without_gpu


@pytest.fixture(scope="module")
def measured(root: Path) -> dict[str, Any]:
    """Case -> what its worker measured."""
    return {path.stem: json.loads(path.read_text()) for path in root.glob("*.json")}


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("alltoall_ep2", "plain"),
        ("allgather_ep2", "plain"),
        ("pp2", "plain"),
        ("full_recompute", "plain"),
        ("aux_ep2", "aux"),
        ("aux_tp2_ep2", "aux"),
        ("aux_cp2_ep2", "aux_unpacked"),
        ("frozen_ep2", "frozen"),
    ],
)
def test_a_layout_changes_neither_losses_nor_expert_load(measured: dict[str, Any], case: str, expected: str) -> None:
    curve, wanted = measured[case]["iterations"], measured[expected]["iterations"]
    assert [m["loss"] for m in curve] == pytest.approx([m["loss"] for m in wanted], rel=LOSS_TOLERANCE)
    assert [m["grad_norm"] for m in curve] == pytest.approx([m["grad_norm"] for m in wanted], rel=GRAD_NORM_TOLERANCE)
    assert [m["counts"] for m in curve] == [m["counts"] for m in wanted]


def test_dispatchers_give_bitwise_equal_losses(measured: dict[str, Any]) -> None:
    losses = [[m["loss"] for m in measured[case]["iterations"]] for case in ("alltoall_ep2", "allgather_ep2")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("case", [name for cases in CASES.values() for name in cases])
def test_loads_add_up_to_tokens_of_samples_times_experts_per_token(measured: dict[str, Any], case: str) -> None:
    curve = measured[case]["iterations"]
    assert len(curve) == ITERATIONS
    for iteration in curve:
        assigned = iteration["sample_tokens"] * (MOE.num_experts_per_tok or 0)
        assert [sum(layer) for layer in iteration["counts"]] == [assigned] * MOE.num_hidden_layers


def test_a_frozen_router_does_not_change(measured: dict[str, Any]) -> None:
    for case in ("frozen", "frozen_ep2"):
        assert measured[case]["moved"] == [0.0] * MOE.num_hidden_layers
    assert min(measured["plain"]["moved"]) > 0
    frozen, plain = measured["frozen"]["iterations"][0], measured["plain"]["iterations"][0]
    assert frozen["loss"] == plain["loss"]
    assert frozen["grad_norm"] < plain["grad_norm"]


def test_the_auxiliary_loss_changes_gradients_but_not_the_reported_loss(measured: dict[str, Any]) -> None:
    first, plain = measured["aux"]["iterations"][0], measured["plain"]["iterations"][0]
    assert first["loss"] == plain["loss"]
    assert first["grad_norm"] > plain["grad_norm"] * 1.01
