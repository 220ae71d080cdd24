"""Tests the sizes that an engine gets from its memory, with the shapes of published models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ssd.artifacts.hub import ModelFolder
from megatron_ssd.cli.compose import compose_config
from megatron_ssd.cli.plan import RECIPES
from megatron_ssd.config.cluster import Device
from megatron_ssd.config.generation import EngineConfig
from megatron_ssd.errors import UserError
from megatron_ssd.generation.engine_budget import kv_cache, sized_engine
from megatron_ssd.generation.vllm_engine import VllmSpec
from megatron_ssd.planner.gpus import GPUS

GB, GIB = 1e9, 1 << 30
H100, B200 = 85.5 * GB, 192 * GB  # as nvidia-smi reports them
QWEN3_30B = {"num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
             "hidden_size": 2048, "torch_dtype": "bfloat16"}  # fmt: skip
WEIGHTS = 61_064_245_248


@pytest.fixture
def large(tmp_path: Path) -> ModelFolder:
    """Qwen3-30B-A3B, whose weights are a hole in a file."""
    return write_model(tmp_path, QWEN3_30B, WEIGHTS)


def write_model(folder: Path, config: dict[str, Any], num_bytes: int) -> ModelFolder:
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(num_bytes)
    return ModelFolder(path=folder, revision="", vocab_size=151936, max_position_embeddings=262144, end_token_ids=(0,))


def sized(model: ModelFolder, *, device: Device = "cuda", gpu: float | None = B200, **settings: Any) -> EngineConfig:
    return sized_engine(EngineConfig(**settings), model, device=device, num_engines=1, gpu_bytes=gpu)


def test_the_30b_model_needs_two_gpus_of_80_gb_for_its_context(large: ModelFolder) -> None:
    with pytest.raises(UserError) as error:
        sized(large, gpu=80 * GB)
    message = str(error.value)
    assert message.startswith(
        "engine.max_model_len = 131072: a sequence of that length needs 12.9 GB of KV cache, and "
    )
    assert "61.1 GB of weights" in message
    assert "set engine.tensor_parallel_size=2, or set engine.max_model_len to at most 70554" in message
    assert sized(large, gpu=80 * GB, tensor_parallel_size=2).max_num_seqs == 93
    assert sized(large, gpu=80 * GB, kv_cache_dtype="fp8").max_num_seqs == 17
    shorter = kv_cache(EngineConfig(), large, device="cuda", gpu_bytes=80 * GB)
    assert shorter is not None
    assert sized(large, gpu=80 * GB, max_model_len=shorter.tokens).max_num_seqs == 16


@pytest.mark.parametrize("name", [name for name in RECIPES if "4b" not in name and "1.7b" not in name])
def test_the_engine_of_every_recipe_for_the_30b_model_fits_its_gpus(large: ModelFolder, name: str) -> None:
    engine = compose_config([f"experiment={name}"]).engine
    sized_engine(engine, large, device="cuda", num_engines=1, gpu_bytes=GPUS[RECIPES[name]].memory_gb * GB)


def test_sequences_follow_the_memory_and_given_numbers_stay(large: ModelFolder) -> None:
    assert sized(large).max_num_seqs == 133
    assert sized(large, max_num_seqs=300).max_num_seqs == 300
    assert sized(large, max_model_len=1024).max_num_seqs == 256
    assert sized(large, gpu=None).max_num_seqs == 256  # nothing is known


def test_options_may_change_anything_so_nothing_is_refused(large: ModelFolder) -> None:
    assert sized(large, gpu=H100 / 2, options={"quantization": "fp8"}).max_num_seqs == 256


@pytest.mark.parametrize(
    ("device", "settings", "expected"),
    [
        ("cuda", {}, 16384),
        ("cuda", {"max_num_batched_tokens": 4096}, 4096),
        ("cpu", {"max_model_len": 512}, 8192),
        ("cpu", {"max_model_len": 10000}, 10000),
        ("cpu", {"max_model_len": 512, "max_num_batched_tokens": 600}, 600),
    ],
)
def test_tokens_of_a_step(large: ModelFolder, device: Device, settings: dict[str, Any], expected: int) -> None:
    engine = sized(large, device=device, **settings)
    assert engine.max_num_batched_tokens == expected
    arguments = VllmSpec(model="", end_token_ids=(), device=device, devices=(("0",),), settings=engine).arguments()
    assert arguments["max_num_batched_tokens"] == expected
    assert None not in arguments.values()


def test_a_cpu_reads_prompts_whole_and_has_the_cache_that_was_set(large: ModelFolder) -> None:
    with pytest.raises(UserError, match=r"max_num_batched_tokens = 100: on a CPU a step takes whole .*512"):
        sized(large, device="cpu", max_model_len=512, max_num_batched_tokens=100)
    with pytest.raises(UserError, match=r"needs 12\.9 GB .*kv_cache_gib = 1\); set engine\.kv_cache_gib=12, or "):
        sized(large, device="cpu")
    assert sized(large, device="cpu", kv_cache_gib=12).max_num_seqs == 16


@given(
    layers=st.integers(1, 80), groups=st.sampled_from([1, 2, 4, 8]), width=st.sampled_from([None, 64, 128]),
    tensor=st.sampled_from([1, 2, 4, 8]), fp8=st.booleans(), dtype=st.sampled_from(["bfloat16", "float32"]),
)  # fmt: skip
def test_a_token_takes_keys_and_values_of_each_layer_and_head(
    tmp_path_factory: pytest.TempPathFactory, layers: int, groups: int, width: int | None, tensor: int, fp8: bool,
    dtype: Any,
) -> None:  # fmt: skip
    config = {"num_hidden_layers": layers, "num_attention_heads": 8, "num_key_value_heads": groups, "head_dim": width,
              "hidden_size": 1024, "dtype": "bfloat16"}  # fmt: skip
    model = write_model(tmp_path_factory.mktemp("model"), config, 1000)
    engine = EngineConfig(tensor_parallel_size=tensor, kv_cache_dtype="fp8" if fp8 else "auto", dtype=dtype)
    cache = kv_cache(engine, model, device="cuda", gpu_bytes=B200)
    assert cache is not None
    number = 1 if fp8 else 2 if dtype == "bfloat16" else 4
    assert cache.bytes_per_token == layers * max(groups, tensor) * (width or 128) * 2 * number
    weights = 1000 if dtype == "bfloat16" else 2000
    assert cache.num_bytes == pytest.approx(tensor * (0.9 * B200 - 4 * GB) - weights)


@pytest.mark.parametrize(
    "config",
    [{}, {"text_config": QWEN3_30B}, {**QWEN3_30B, "kv_lora_rank": 512}, {**QWEN3_30B, "sliding_window": 4096}],
    ids=["empty", "nested", "latent", "window"],
)
def test_another_form_of_attention_is_left_to_vllm(tmp_path: Path, config: dict[str, Any]) -> None:
    model = write_model(tmp_path, config, WEIGHTS)
    assert kv_cache(EngineConfig(), model, device="cuda", gpu_bytes=H100) is None
    unused = {**QWEN3_30B, "sliding_window": 4096, "use_sliding_window": False}
    model = write_model(tmp_path, unused, WEIGHTS)
    assert kv_cache(EngineConfig(), model, device="cuda", gpu_bytes=B200) is not None
