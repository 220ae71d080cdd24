"""Tests that ten iterations of fine-tuning have the stored losses and gradient norms, dense and with experts.

Other tests compare layouts with each other, and would not find an error that all layouts share. All numbers are exact
fp32. Processors differ in the order in which they sum, which the tolerances allow for. A change of the loss
normalization, of RoPE's theta or of the learning rate by 1 % is far outside of them.

After a change that is meant to change the numbers, write them again with this command, and say why in the commit:

    python -m tests.unit.training.test_golden_losses
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from launch.train import train as run_train
from megatron_ssd.config.training import OptimizerConfig
from tests.helpers.devices import without_gpu
from tests.helpers.tiny_hf import MODELS, write_hf_folder
from tests.helpers.training_run import metrics, publish_documents, training_config

pytestmark = without_gpu

GOLDEN = Path(__file__).with_name("golden_losses.json")
CASES = {"dense": "qwen3_tied", "moe": "qwen3_moe"}
LOSS, GRAD_NORM = 2e-6, 2e-5  # relative tolerances

Curve = list[dict[str, float]]


def train(run_dir: Path, case: str) -> Curve:
    """Train ten iterations on packed pairs of [prompt, response] of many lengths.

    Returns the loss and the gradient norm of each iteration.
    """
    model = MODELS[CASES[case]]
    # With a small theta, rotations within a packed sequence are large enough to show a change of theta.
    model = write_hf_folder(run_dir / "base", dataclasses.replace(model, rope_theta=100.0))
    random = np.random.default_rng(0)
    documents = []
    for length in random.integers(12, 48, size=120):
        start, step, border = random.integers(model.vocab_size), random.integers(1, 5), random.integers(2, 9)
        ids = ((start + step * np.arange(length)) % model.vocab_size).tolist()
        documents.append((ids[:border], ids[border:]))
    publish_documents(run_dir, documents, vocab_size=model.vocab_size)
    config = training_config(
        run_dir, objective="sft", model=model,
        optimizer=OptimizerConfig(lr=3e-3, min_lr=3e-4, lr_warmup_iters=2),
        training={"global_batch_size": 4, "seq_length": 128},
    )  # fmt: skip
    run_train(config)
    return [{"loss": record["loss"], "grad_norm": record["grad_norm"]} for record in metrics(run_dir)]


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradient_norms_equal_the_stored_ones(tmp_path: Path, case: str) -> None:
    expected, curve = json.loads(GOLDEN.read_text())[case], train(tmp_path, case)
    assert len(curve) == len(expected) == 10
    assert [step["loss"] for step in curve] == pytest.approx([step["loss"] for step in expected], rel=LOSS)
    norms = [[step["grad_norm"] for step in steps] for steps in (curve, expected)]
    assert norms[0] == pytest.approx(norms[1], rel=GRAD_NORM)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        curves = {case: train(Path(folder) / case, case) for case in CASES}
    GOLDEN.write_text(json.dumps(curves, indent=1) + "\n")
    print(f"wrote {GOLDEN}", file=sys.stderr)
