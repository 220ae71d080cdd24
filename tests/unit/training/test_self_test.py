"""Tests that training does not start if packed samples attend to each other.

``tests/distributed/test_packing_layouts.py`` tests this in several layouts.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from launch.train import train as run_train
from megatron_ssd.config.precision import Fp8Config, PrecisionConfig
from megatron_ssd.errors import UserError
from megatron_ssd.training.self_test import tolerance
from tests.helpers.devices import without_gpu
from tests.helpers.packing import one_segment
from tests.helpers.training_run import metrics, publish_documents, training_config, write_dataset

pytestmark = without_gpu


def test_a_leak_stops_training_before_the_first_iteration(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    config = training_config(tmp_path, training={"train_iters": 3, "packing": "best_fit"})
    with one_segment():
        with pytest.raises(UserError, match=r"sample \d+ has loss [\d.]+ in a packed sequence and [\d.]+ alone"):
            run_train(config)
        assert not (tmp_path / "checkpoints.partial" / "metrics.jsonl").exists()
        unpacked = training_config(tmp_path, training={"train_iters": 3, "packing": "none"}, replace=True)
        run_train(unpacked)
    assert len(metrics(tmp_path)) == 3


def test_the_self_test_can_be_turned_off(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    with one_segment():
        run_train(training_config(tmp_path, training={"train_iters": 3, "self_test": False}))
    assert len(metrics(tmp_path)) == 3


@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_samples_that_fill_a_sequence_pass(
    tmp_path: Path, micro_batch_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    publish_documents(tmp_path, [[((start + np.arange(65)) % 64).tolist()] for start in range(6)])
    with caplog.at_level(logging.INFO):
        run_train(training_config(tmp_path, training={"train_iters": 3, "micro_batch_size": micro_batch_size}))
    assert "samples have the same loss packed and alone" in caplog.text


def test_the_tolerance_is_larger_with_fewer_bits_and_smaller_with_more_tokens() -> None:
    exact = PrecisionConfig(params_dtype="fp32", transformer_engine=False)
    fast = PrecisionConfig(params_dtype="fp32", transformer_engine=False, fast_matmul=True)
    bf16, fp8 = PrecisionConfig(), PrecisionConfig(fp8=Fp8Config(recipe="blockwise"))
    allowed = [tolerance(precision, 2.0, 100) for precision in (exact, fast, bf16, fp8)]
    assert allowed == pytest.approx([4e-5, 0.02, 0.02, 0.07])
    assert tolerance(bf16, 2.0, 10_000) == pytest.approx(0.011)
