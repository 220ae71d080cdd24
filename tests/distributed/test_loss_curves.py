"""One model, one data set, many layouts: the same losses and the same global gradient norms.

fp32, four iterations, dense and with experts, packed rows and one sample a row. Layouts sum in other orders, so the
curves agree to rounding: the largest relative difference measured was 9e-8 (loss) and 1.4e-6 (gradient norm), and the
tolerances are about ten times that.

An auxiliary loss balances the experts within each micro batch. Micro batches hold the same rows in every layout here,
and Megatron-Core adds up routing over tensor- and context-parallel ranks, so it agrees as well; with another micro
batch size it would not.

What is not covered: TransformerEngine, bf16, NCCL.
"""

from __future__ import annotations

import json

import pytest
import torch

from tests.distributed.loss_worker import CASES, ITERATIONS, LAYOUTS
from tests.helpers.torchrun import run_workers
from tests.helpers.training_run import write_dataset

LOSS_TOLERANCE, GRAD_NORM_TOLERANCE = 1e-6, 1e-5
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="several processes on one GPU are not this test")

Curve = list[dict[str, float]]


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Curve]:
    """Case -> its iterations. One torchrun for each number of processes."""
    root = tmp_path_factory.mktemp("curves")
    write_dataset(root)
    for world_size in LAYOUTS:
        run_workers("loss_worker", root, world_size=world_size, seconds=400)
    return {path.stem: json.loads(path.read_text()) for path in root.glob("*.json")}


@pytest.mark.parametrize(
    "case", [f"{model}-{data}-{layout}" for (model, data), names in CASES.items() for layout in names[1:]]
)
def test_a_layout_trains_like_one_process(curves: dict[str, Curve], case: str) -> None:
    expected, curve = curves[case.rsplit("-", 1)[0] + "-one"], curves[case]
    assert len(curve) == ITERATIONS
    assert [m["valid_tokens"] for m in curve] == [m["valid_tokens"] for m in expected]
    assert [m["loss"] for m in curve] == pytest.approx([m["loss"] for m in expected], rel=LOSS_TOLERANCE)
    assert [m["grad_norm"] for m in curve] == pytest.approx([m["grad_norm"] for m in expected], rel=GRAD_NORM_TOLERANCE)


def test_the_cases_are_not_all_one(curves: dict[str, Curve]) -> None:
    """What is varied beside the layout changes the numbers, and the models learn."""
    references = [curves[f"{model}-{data}-one"] for model, data in CASES]
    assert len({curve[0]["grad_norm"] for curve in references}) == len(references)
    assert all(curve[-1]["loss"] < curve[0]["loss"] - 0.05 for curve in references)
