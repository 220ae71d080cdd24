"""Mixtures of experts in real processes: routing options, dispatchers, frozen routers, the logged load.

fp32, three iterations on the CPU; tolerances as in test_loss_curves. Not covered: grouped GEMM and DeepEP's dispatcher,
which are CUDA kernels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.moe_worker import CASES, ITERATIONS
from tests.helpers.training_run import MOE, training_config

LOSS_TOLERANCE, GRAD_NORM_TOLERANCE = 1e-6, 5e-6
WORKER = "moe_worker"
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="several processes on one GPU are not this test")


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
    rows, wanted = measured[case]["rows"], measured[expected]["rows"]
    assert [r["loss"] for r in rows] == pytest.approx([r["loss"] for r in wanted], rel=LOSS_TOLERANCE)
    assert [r["grad_norm"] for r in rows] == pytest.approx([r["grad_norm"] for r in wanted], rel=GRAD_NORM_TOLERANCE)
    assert [r["counts"] for r in rows] == [r["counts"] for r in wanted]


def test_dispatchers_give_bitwise_equal_losses(measured: dict[str, Any]) -> None:
    losses = [[row["loss"] for row in measured[case]["rows"]] for case in ("alltoall_ep2", "allgather_ep2")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("case", [name for cases in CASES.values() for name in cases])
def test_loads_add_up_to_tokens_times_experts_per_token(measured: dict[str, Any], case: str) -> None:
    training = training_config(Path("unused"), model=MOE).training
    assigned = training.global_batch_size * training.seq_length * (MOE.num_experts_per_tok or 0)
    rows = measured[case]["rows"]
    assert len(rows) == ITERATIONS
    for row in rows:
        assert [sum(layer) for layer in row["counts"]] == [assigned] * MOE.num_hidden_layers


def test_a_frozen_router_does_not_change(measured: dict[str, Any]) -> None:
    for case in ("frozen", "frozen_ep2"):
        assert measured[case]["moved"] == [0.0] * MOE.num_hidden_layers
    assert min(measured["plain"]["moved"]) > 0
    assert measured["frozen"]["rows"][0]["loss"] == measured["plain"]["rows"][0]["loss"]
    assert measured["frozen"]["rows"][0]["grad_norm"] < measured["plain"]["rows"][0]["grad_norm"]


def test_the_auxiliary_loss_changes_gradients_and_not_the_reported_loss(measured: dict[str, Any]) -> None:
    first, plain = measured["aux"]["rows"][0], measured["plain"]["rows"][0]
    assert first["loss"] == plain["loss"]
    assert first["grad_norm"] > plain["grad_norm"] * 1.01
