"""Tests that training computes the same updates as a plain loop with transformers and ``torch.optim.AdamW``.

The tests compare loss, gradient norm and the final weights of twenty iterations, dense, with experts and with biases,
in exact fp32. ``tests/distributed`` compares layouts with one process; these tests compare one process with a loop that
shares no code with it. Measured differences: 7e-8 (loss), 3e-7 (gradient norm) and, relative to how far training moved
a weight, 6e-6.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from launch.train import train as run_train
from megatron_ssd.config.run import RunConfig
from megatron_ssd.config.training import OptimizerConfig
from megatron_ssd.export import verify
from megatron_ssd.export.export import run_export
from tests.helpers.devices import without_gpu
from tests.helpers.paths import ROOT
from tests.helpers.plain_loop import PlainRun
from tests.helpers.tiny_hf import MODELS, write_hf_folder
from tests.helpers.training_run import metrics, publish_documents, training_config

pytestmark = without_gpu

BASES = {
    "qwen3_tied": MODELS["qwen3_tied"],
    "qwen3_moe": MODELS["qwen3_moe"],
    "qwen2": dataclasses.replace(MODELS["llama"], model_type="qwen2", head_dim=8),
}
ITERATIONS, VOCAB_SIZE = 20, 512
LOSS, GRAD_NORM = 5e-6, 5e-5  # relative
WEIGHTS = 1e-3  # distance between the two results, relative to how far training moved a weight
OPTIMIZER = OptimizerConfig(lr=2e-3, min_lr=2e-4, lr_warmup_iters=4, weight_decay=0.1, clip_grad=1.0)


def documents() -> list[tuple[list[int], list[int]]]:
    """Sixteen pairs of 17 ids, with prompts of 3 to 9. Four fill a packed sequence of 64, so an iteration uses all."""
    random = np.random.default_rng(0)
    pairs = []
    for _ in range(16):
        start, step, border = random.integers(VOCAB_SIZE), random.integers(1, 5), random.integers(3, 10)
        ids = ((start + step * np.arange(17)) % VOCAB_SIZE).tolist()
        pairs.append((ids[:border], ids[border:]))
    return pairs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> dict[str, Path]:
    """Model -> a run folder in which this project and the plain loop have trained it on the same documents."""
    roots = {name: tmp_path_factory.mktemp(name) for name in BASES}
    for name, root in roots.items():
        base = root / "base"
        model = write_hf_folder(base, dataclasses.replace(BASES[name], vocab_size=VOCAB_SIZE))
        for file in tiny_tokenizer.iterdir():
            if file.name != "config.json":
                (base / file.name).write_bytes(file.read_bytes())
        config = training_config(
            root, objective="sft", model=model, optimizer=OPTIMIZER,
            training={"train_iters": ITERATIONS, "global_batch_size": 4, "micro_batch_size": 2, "seq_length": 64},
        )  # fmt: skip
        publish_documents(root, documents(), vocab_size=VOCAB_SIZE)
        run_train(config)
        with mock.patch.object(verify, "MAX_PARAMETERS", 0):  # the weights are compared below, not logits
            run_export(config)
        plain_run(config).save(root)
    # In one process of its own: the CPU adaptation for Megatron-Core is not active there.
    subprocess.run(
        [sys.executable, "-m", "tests.helpers.plain_loop", *map(str, roots.values())],
        check=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    return roots


@pytest.fixture(params=BASES)
def run(request: pytest.FixtureRequest, runs: dict[str, Path]) -> Path:
    return runs[request.param]


def plain_run(config: RunConfig) -> PlainRun:
    """The configuration of the plain loop."""
    assert config.model is not None
    assert config.model.path is not None
    optimizer = config.optimizer
    return PlainRun(
        model=config.model.path, documents=documents(), train_iters=ITERATIONS, lr=optimizer.lr,
        min_lr=optimizer.min_lr, lr_warmup_iters=optimizer.lr_warmup_iters, weight_decay=optimizer.weight_decay,
        betas=(optimizer.adam_beta1, optimizer.adam_beta2), eps=optimizer.adam_eps, clip_grad=optimizer.clip_grad,
    )  # fmt: skip


def test_losses_and_gradient_norms_agree(run: Path) -> None:
    expected = json.loads((run / "plain_curve.json").read_text())
    records = metrics(run)
    assert len(records) == len(expected) == ITERATIONS
    assert [r["loss"] for r in records] == pytest.approx([r["loss"] for r in expected], rel=LOSS)
    assert [r["grad_norm"] for r in records] == pytest.approx([r["grad_norm"] for r in expected], rel=GRAD_NORM)
    assert expected[0]["grad_norm"] > OPTIMIZER.clip_grad > expected[-1]["grad_norm"], "clipping is not exercised"


def test_final_weights_agree(run: Path) -> None:
    start, expected, exported = (weights(run / name) for name in ("base", "plain", "export"))
    assert set(exported) == set(expected) == set(start)
    for name, weight in exported.items():
        moved = (expected[name] - start[name]).norm()
        assert (weight - expected[name]).norm() <= WEIGHTS * moved, name


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
