"""Tests the checks of sampling and engine settings, and which of them identify the samples."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ssd.config.build import build
from megatron_ssd.config.generation import EngineConfig, SamplingParams
from megatron_ssd.config.run import RunConfig
from tests.helpers.errors import config_error

SERVER = {"backend": "server", "endpoints": ["http://a:8000/v1"]}


@pytest.mark.parametrize(
    ("params", "label"),
    [
        (SamplingParams(temperature=1.5, top_k=20, top_p=0.8), "T1.5-k20-p0.8"),
        (SamplingParams(min_p=0.05), "T1-k-1-p1-minp0.05"),
        (SamplingParams(min_p=0.1, repetition_penalty=1.05), "T1-k-1-p1-minp0.1-rep1.05"),
    ],
)
def test_labels_show_the_enabled_parameters(params: SamplingParams, label: str) -> None:
    assert params.label == label


@pytest.mark.parametrize(
    ("section", "values", "parts"),
    [
        ("sampling", {"train": {"min_p": 1.5}, "eval": {}}, ["min_p = 1.5", "between 0 (off) and 1"]),
        ("sampling", {"train": {"repetition_penalty": 0}, "eval": {}}, ["repetition_penalty = 0", "above 0"]),
        ("sampling", {"train": {}, "eval": {}, "stop_token_ids": [-1]}, ["stop_token_ids = [-1]", "not negative"]),
        ("engine", {"max_restarts": -1}, ["engine.max_restarts = -1", "negative"]),
        ("engine", {"max_retries": -1}, ["engine.max_retries = -1", "negative"]),
        ("engine", {"request_timeout": 0}, ["engine.request_timeout = 0", "positive"]),
        ("engine", {"backend": "server"}, ["engine.backend = server", "needs endpoints"]),
        ("engine", {"endpoints": ["http://a:8000/v1"]}, ["engine.backend = vllm", "has none"]),
        ("engine", {**SERVER, "endpoints": ["http://a:8000"]}, ["http://a:8000", "http://HOST:PORT/v1"]),
        ("engine", {**SERVER, "endpoints": ["a:8000/v1"]}, ["a:8000/v1", "base URL"]),
        ("engine", {**SERVER, "endpoints": ["http://a/v1", "http://a/v1"]}, ["lists a server twice"]),
        ("engine", {"max_num_batched_tokens": 0}, ["engine.max_num_batched_tokens = 0", "at least 1"]),
        ("engine", {"kv_cache_dtype": "int8"}, ["engine.kv_cache_dtype", "int8"]),
        ("engine", {**SERVER, "options": {"quantization": "fp8"}}, ["engine.options", "vllm serve"]),
    ],
)  # fmt: skip
def test_invalid_values_are_one_line(section: str, values: dict[str, Any], parts: list[str]) -> None:
    with config_error(*parts):
        build(RunConfig, {section: values})


def test_a_cpu_has_no_cache_in_fp8() -> None:
    values = {"cluster": {"device": "cpu"}, "precision": {"transformer_engine": False}}
    with config_error("engine.kv_cache_dtype = fp8", "CUDA", "engine.kv_cache_dtype=auto"):
        build(RunConfig, {**values, "engine": {"kv_cache_dtype": "fp8"}})


def test_engine_options_are_passed_through() -> None:
    options = {"quantization": "fp8", "compilation_config": {"level": 3}, "swap": [1, None]}
    assert build(RunConfig, {"engine": {"options": options}}).engine.options == options


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"max_num_seqs": 8, "prefix_caching": False, "max_restarts": 0, "data_parallel_size": 2}, True),
        ({"max_num_batched_tokens": 4096}, True),
        ({"kv_cache_dtype": "fp8"}, False),
        ({"options": {"quantization": "fp8"}}, False),
        ({"dtype": "float32"}, False),
        ({"backend": "server", "endpoints": ("http://a/v1",)}, False),
    ],
)
def test_identity_contains_what_determines_the_tokens(changes: dict[str, Any], same: bool) -> None:
    assert (EngineConfig(**changes).identity == EngineConfig().identity) is same


def test_a_key_of_later_versions_does_not_change_the_identity() -> None:
    assert EngineConfig().identity == {"backend": "vllm", "dtype": "bfloat16", "max_model_len": 131072, "options": {}}


def test_endpoints_are_not_part_of_the_identity() -> None:
    one = EngineConfig(backend="server", endpoints=("http://a/v1",))
    assert one.identity == EngineConfig(backend="server", endpoints=("http://b/v1", "http://c/v1")).identity
