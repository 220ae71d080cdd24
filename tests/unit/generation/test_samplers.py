"""Tests which settings a sampler refuses, and how the workers of a node share its devices."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_ssd.artifacts.hub import ModelFolder, open_model
from megatron_ssd.config.cluster import Device
from megatron_ssd.config.generation import EngineConfig, WorkerConfig
from megatron_ssd.errors import UserError
from megatron_ssd.generation.samplers import engine_devices, open_sampler, share_of_node


@given(world=st.integers(1, 20), more=st.integers(0, 50), before=st.integers(0, 5))
def test_each_device_belongs_to_one_worker(world: int, more: int, before: int) -> None:
    devices = [f"gpu{number}" for number in range(world + more)]
    shares = [
        share_of_node(
            devices, WorkerConfig(rank=before + rank, world=before + world, local_rank=rank, local_world=world)
        )
        for rank in range(world)
    ]
    assert [device for share in shares for device in share] == devices
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_worker_without_a_local_rank_uses_all_devices() -> None:
    assert share_of_node(["a", "b"], WorkerConfig()) == ["a", "b"]
    assert share_of_node(["a", "b"], WorkerConfig(rank=1, world=2)) == ["a", "b"]
    assert share_of_node([], WorkerConfig()) == []


def test_fewer_devices_than_workers_are_refused() -> None:
    with pytest.raises(UserError, match="3 workers on this node: need a GPU or processor core each, and see 2"):
        share_of_node(["0", "1"], WorkerConfig(rank=0, world=3, local_rank=0, local_world=3))


@pytest.fixture(scope="module")
def model(tiny_hf_model: Path) -> ModelFolder:
    return open_model(str(tiny_hf_model))


def check_refused(model: ModelFolder, message: str, *, device: Device = "cpu", **settings: Any) -> None:
    stops = settings.pop("stop_token_ids", ())
    engine = EngineConfig(**{"max_model_len": 256, **settings})
    with pytest.raises(UserError, match=message), contextlib.ExitStack() as stack:
        stack.enter_context(open_sampler(engine, model, device=device, stop_token_ids=stops))


@pytest.mark.parametrize(
    ("name", "instead"),
    [("dtype", "set engine.dtype instead"), ("skip_tokenizer_init", "leave it out"),
     ("enable_chunked_prefill", "leave it out")],
)  # fmt: skip
def test_options_that_the_project_sets_are_refused(model: ModelFolder, name: str, instead: str) -> None:
    check_refused(model, rf"engine\.options\.{name}: .* sets itself; {instead}", options={name: 1})


@pytest.mark.parametrize("name", ["hf_overrides", "hf_config_path"])
def test_options_that_change_the_model_are_refused(model: ModelFolder, name: str) -> None:
    options = {name: {"rope_theta": 5.0}}
    check_refused(model, rf"engine\.options\.{name}: would change the model, .* set model\.path", options=options)


def test_stop_tokens_outside_the_vocabulary_are_refused(model: ModelFolder) -> None:
    check_refused(model, r"stop_token_ids = \[512\]: .* ends at 511", stop_token_ids=(512,))


def test_a_context_longer_than_the_models_is_refused(model: ModelFolder) -> None:
    check_refused(model, r"max_model_len = 257: .*max_position_embeddings \(256\)", max_model_len=257)


def test_tensor_parallelism_on_cpu_is_refused(model: ModelFolder) -> None:
    check_refused(model, r"engine\.tensor_parallel_size = 2: must be 1 on CPU", tensor_parallel_size=2)


@pytest.mark.parametrize(("visible", "tensor", "engines"), [(None, 1, 8), (None, 2, 4), (None, 3, 2), ("5,6,7", 2, 1)])
def test_engines_use_all_gpus_unless_their_number_is_given(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, tensor: int, engines: int
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    devices = engine_devices(EngineConfig(tensor_parallel_size=tensor), "cuda")
    assert [len(each) for each in devices] == [tensor] * engines
    one = EngineConfig(tensor_parallel_size=tensor, data_parallel_size=1)
    assert len(engine_devices(one, "cuda")) == 1
    half = WorkerConfig(rank=0, world=2, local_rank=0, local_world=2)
    if visible is None:
        assert len(engine_devices(EngineConfig(), "cuda", half)) == 4


def test_a_cpu_has_one_engine_unless_their_number_is_given() -> None:
    assert len(engine_devices(EngineConfig(), "cpu")) == 1
    assert len(engine_devices(EngineConfig(data_parallel_size=3), "cpu")) == 3


def test_too_few_gpus_are_refused(model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_refused(model, "need 2 CUDA devices and 1 are visible", device="cuda", data_parallel_size=2)
    check_refused(model, "need 2 CUDA devices and 1 are visible", device="cuda", tensor_parallel_size=2)
