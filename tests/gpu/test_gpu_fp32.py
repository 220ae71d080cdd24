"""Training in fp32 on a GPU has the losses of training on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ssd.config.model import ModelConfig
from tests.gpu.short_runs import losses
from tests.helpers.paths import ROOT
from tests.helpers.training_run import DENSE, EXACT, EXACT_ROUTER, MOE


@pytest.fixture(scope="module")
def on_cpu(progressions: Path) -> dict[str, list[float]]:
    """Losses of both models with the GPU hidden, so that the code for CPUs is active."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.on_cpu", str(progressions)], cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("model", [DENSE, MOE], ids=lambda model: model.name)
def test_fp32_losses_equal_those_on_the_cpu(
    progressions: Path, model: ModelConfig, on_cpu: dict[str, list[float]]
) -> None:
    assert losses(progressions, model, EXACT, EXACT_ROUTER) == pytest.approx(on_cpu[model.name], rel=1e-4)
