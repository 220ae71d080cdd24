"""Tests that losses and gradient norms do not depend on the layout.

The runs are two iterations of fp32, dense and with experts, with and without packing. Layouts sum in different
orders, so the curves agree to rounding: the largest relative difference measured was 9e-8 (loss) and 1.4e-6 (gradient
norm), and the tolerances are about ten times that.

An auxiliary loss balances the experts within each micro batch. Micro batches hold the same sequences in every layout
here, and Megatron-Core adds up routing over tensor- and context-parallel ranks, so it agrees as well. With another
micro batch size it would not.

Not covered: TransformerEngine, bf16, NCCL.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.loss_worker import CASES, DRAWN, ITERATIONS
from tests.helpers.devices import without_gpu

LOSS_TOLERANCE, GRAD_NORM_TOLERANCE = 1e-6, 1e-5
WORKER = "loss_worker"
pytestmark = without_gpu

Curve = list[dict[str, float]]


@pytest.fixture(scope="module")
def curves(root: Path) -> dict[str, Curve]:
    """Case -> its iterations."""
    return {path.stem: json.loads(path.read_text()) for path in root.glob("*-*.json")}


@pytest.mark.parametrize(
    "case", [f"{model}-{data}-{layout}" for (model, data), names in CASES.items() for layout in names[1:]]
)
def test_a_layout_trains_like_one_process(curves: dict[str, Curve], case: str) -> None:
    expected, curve = curves[case.rsplit("-", 1)[0] + "-one"], curves[case]
    assert len(curve) == ITERATIONS
    assert [m["valid_tokens"] for m in curve] == [m["valid_tokens"] for m in expected]
    assert [m["loss"] for m in curve] == pytest.approx([m["loss"] for m in expected], rel=LOSS_TOLERANCE)
    assert [m["grad_norm"] for m in curve] == pytest.approx([m["grad_norm"] for m in expected], rel=GRAD_NORM_TOLERANCE)


def test_the_cases_differ_and_the_models_learn(curves: dict[str, Curve]) -> None:
    references = [curves[f"{model}-{data}-one"] for model, data in CASES]
    assert len({curve[0]["grad_norm"] for curve in references}) == len(references)
    fixed = [curves[f"{model}-{data}-one"] for model, data in CASES if model not in DRAWN]  # a drawn one may be narrow
    assert all(curve[-1]["loss"] < curve[0]["loss"] - 0.05 for curve in fixed)
