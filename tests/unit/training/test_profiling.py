"""Tests the profile of chosen iterations, and the collections of garbage between iterations."""

from __future__ import annotations

import gc
import gzip
import json
from pathlib import Path

import pytest

from launch.train import train
from megatron_ssd.config.training import TrainingConfig
from megatron_ssd.errors import ConfigError
from megatron_ssd.training.garbage import collected_together
from tests.helpers.devices import without_gpu
from tests.helpers.stopped_training import train_until_stopped
from tests.helpers.training_run import metrics, training_config, write_dataset


@without_gpu
def test_a_trace_has_the_phases_of_the_chosen_iterations(tmp_path: Path) -> None:
    write_dataset(tmp_path, num_documents=20)
    settings = {"train_iters": 5, "profile_steps": (2, 3), "gc_interval": 2, "self_test": False}
    train(training_config(tmp_path, training=settings))
    assert len(metrics(tmp_path)) == 5
    assert gc.isenabled()
    (trace,) = (tmp_path / "profile").iterdir()
    assert trace.name == "trace_2_3.json.gz"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert [names.count(name) for name in ("forward-backward", "optimizer", "data")] == [2, 2, 4]


@without_gpu
def test_a_run_that_stops_within_the_chosen_iterations_still_writes_a_trace(tmp_path: Path) -> None:
    write_dataset(tmp_path, num_documents=20)
    config = training_config(tmp_path, training={"train_iters": 6, "profile_steps": (2, 5), "self_test": False})
    train_until_stopped(config, iteration=3)
    (trace,) = (tmp_path / "profile").iterdir()
    written = trace.read_bytes()
    train(config)
    assert trace.read_bytes() == written


@pytest.mark.parametrize("steps", [(0, 2), (3, 2), (2, 11)])
def test_iterations_that_cannot_be_profiled_are_refused(steps: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"profile_steps = .* from 1 to training.train_iters"):
        TrainingConfig(train_iters=10, profile_steps=steps)


def test_garbage_is_collected_after_multiples_of_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    collections: list[int] = []
    now = 0
    monkeypatch.setattr(gc, "collect", lambda: collections.append(now))
    with collected_together(3) as collect:
        assert not gc.isenabled()
        for now in range(1, 8):
            collect(now)
    assert gc.isenabled()
    assert collections == [0, 3, 6]


def test_without_an_interval_python_collects() -> None:
    with collected_together(None) as collect:
        collect(1)
        assert gc.isenabled()
