"""Tests that a stopped run resumes with the losses of an uninterrupted run, for every kind of optimizer.

``tests/distributed/test_resume.py`` tests this with several processes, and with a killed run.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from launch.train import train as run_train
from megatron_ssd.config.model import MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.training.checkpoint_folder import read_facts
from tests.helpers.devices import without_gpu
from tests.helpers.stopped_training import train_until_stopped
from tests.helpers.training_run import MOE, metrics, training_config, write_dataset

pytestmark = without_gpu

BF16 = PrecisionConfig(params_dtype="bf16", transformer_engine=False)
NON_DISTRIBUTED = ParallelConfig(use_distributed_optimizer=False)
KINDS: dict[str, dict[str, Any]] = {
    "fp32_distributed": {},
    "fp32_non_distributed": {"parallel": NON_DISTRIBUTED},
    "bf16_distributed": {"precision": BF16},
    "bf16_non_distributed": {"precision": BF16, "parallel": NON_DISTRIBUTED},
    "moe_distributed": {"model": MOE},
    "moe_non_distributed": {"model": MOE, "parallel": NON_DISTRIBUTED},
    "older_checkpoint": {"checkpoint": {"optimizer_format": "fully_reshardable"}},
    "moe_frozen_router": {"model": MOE, "moe": MoeConfig(freeze_router=True)},
    "ema_and_validation": {"precision": BF16, "training": {"ema_decay": 0.9, "validation_fraction": 0.2}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_the_uninterrupted_one_bitwise(tmp_path: Path, kind: str) -> None:
    for name in ("uninterrupted", "broken"):
        write_dataset(tmp_path / name)
    uninterrupted, broken = (training_config(tmp_path / name, **KINDS[kind]) for name in ("uninterrupted", "broken"))
    train_until_stopped(broken, iteration=4)
    assert len(metrics(tmp_path / "broken", "checkpoints.partial")) == 4
    if kind == "older_checkpoint":
        _remove_facts(tmp_path / "broken" / "checkpoints.partial" / "iter_0000004" / "checkpoint.json")
    for config in (broken, uninterrupted):
        run_train(config)
    curves = [
        [(m["loss"], m["grad_norm"], m["samples"], m["validation_loss"]) for m in metrics(tmp_path / name)]
        for name in ("broken", "uninterrupted")
    ]
    assert curves[0] == curves[1]
    # Weights, optimizer state and EMA of the last checkpoint are equal too.
    hashes = [
        {name: file.sha256 for name, file in read_facts(path).files.items() if name.endswith(".distcp")}
        for path in (tmp_path / name / "checkpoints" / "iter_0000010" for name in ("broken", "uninterrupted"))
    ]
    assert hashes[0] == hashes[1]


def _remove_facts(path: Path) -> None:
    """Remove what ``checkpoint.json`` did not have before there was a choice of formats."""
    facts = json.loads(path.read_text())
    assert facts.pop("optimizer_format") == "fully_reshardable"
    del facts["layout"]["gradient_bucket"]
    path.write_text(json.dumps(facts))
