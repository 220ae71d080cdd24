"""vLLM itself, on a random Qwen3 of two small layers. Two engines, started once, serve every test of running ones."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.config.build import build_config
from megatron_ssd.config.generation import Decoding
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.generation.model_folder import ModelFolder, open_model
from megatron_ssd.generation.pool import EnginePool
from megatron_ssd.generation.sampler import Completion, Request
from megatron_ssd.generation.vllm_sampler import _reason, engine_facts, open_sampler

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM (make venv)")
HOT = Decoding(temperature=2.0, top_k=20, top_p=0.9)


def engine_config(**engine: Any) -> RunConfig:
    settings = {
        "max_model_len": 256,
        "max_num_seqs": 64,
        "dtype": "float32",
        "enforce_eager": True,
        "data_parallel_size": 2,
        **engine,
    }
    return build_config({"cluster": {"device": "cpu"}, "precision": {"transformer_engine": False}, "engine": settings})


@pytest.fixture(scope="module")
def model(tiny_hf_model: Path) -> ModelFolder:
    return open_model(str(tiny_hf_model))


@pytest.fixture(scope="module")
def pool(model: ModelFolder) -> Iterator[EnginePool]:
    with open_sampler(engine_config(), model) as pool:
        yield pool


def requests(count: int, *, decoding: Decoding = HOT, max_tokens: int = 24) -> list[Request]:
    return [
        Request(
            key=("p", number),
            prompt_token_ids=[2 + (number * 7 + place) % 500 for place in range(1 + number % 40)],
            seed=1000 + number,
            decoding=decoding,
            max_tokens=max_tokens,
        )
        for number in range(count)
    ]


def draw(pool: EnginePool, wanted: list[Request]) -> dict[object, Completion]:
    completions = list(pool.sample(wanted))
    assert len(completions) == len(wanted)
    return {completion.key: completion for completion in completions}


@needs_vllm
def test_same_request_and_seed_give_the_same_tokens_in_any_company(pool: EnginePool) -> None:
    wanted = requests(100)
    first = draw(pool, wanted)
    assert draw(pool, wanted[::-1]) == first
    few = draw(pool, wanted[3::9])
    assert all(first[key] == completion for key, completion in few.items())
    mixed = [*requests(20, decoding=Decoding(temperature=0.0)), *wanted[50:]]
    assert all(first[key] == done for key, done in draw(pool, mixed).items() if key in {w.key for w in wanted[50:]})


@needs_vllm
def test_another_seed_gives_other_tokens(pool: EnginePool) -> None:
    wanted = requests(40)
    first = draw(pool, wanted)
    second = draw(pool, [dataclasses.replace(request, seed=request.seed + 1) for request in wanted])
    assert sum(first[key].token_ids == second[key].token_ids for key in first) < 5


@needs_vllm
def test_end_token_stands_exactly_where_the_model_stopped(pool: EnginePool, model: ModelFolder) -> None:
    # Untruncated and hot, the random model draws nearly uniformly, so some responses meet the end token.
    completions = draw(pool, requests(200, decoding=Decoding(temperature=2.0), max_tokens=100)).values()
    ends = set(model.end_token_ids)
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}
    for completion in completions:
        if completion.finish_reason == "stop":
            assert completion.token_ids[-1] in ends
            assert not ends & set(completion.token_ids[:-1])
        else:
            assert not ends & set(completion.token_ids)
            assert len(completion.token_ids) == 100


@needs_vllm
def test_responses_end_with_the_context(pool: EnginePool) -> None:
    longest = Request(key=("long",), prompt_token_ids=[9] * 255, seed=1, decoding=HOT, max_tokens=50)
    (completion,) = pool.sample([longest])
    assert len(completion.token_ids) == 1


@needs_vllm
def test_greedy_is_what_transformers_gives(pool: EnginePool, model: ModelFolder) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    wanted = requests(12, decoding=Decoding(temperature=0.0), max_tokens=8)
    drawn = draw(pool, wanted)
    reference = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    for request in wanted:
        prompt = torch.tensor([request.prompt_token_ids])
        with torch.no_grad():
            ids = reference.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False)
        assert drawn[request.key].token_ids == ids[0, prompt.shape[1] :].tolist()


@needs_vllm
def test_broken_weights_are_one_line(model: ModelFolder, tmp_path: Path) -> None:
    for file in model.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    broken = dataclasses.replace(model, path=tmp_path)
    with (
        pytest.raises(UserError, match=r"vLLM with the model .*did not start") as caught,
        open_sampler(engine_config(data_parallel_size=1), broken) as pool,
    ):
        pool.wait_ready()
    assert "\n" not in str(caught.value)


def test_context_beyond_the_models_is_refused(model: ModelFolder) -> None:
    with pytest.raises(UserError, match=r"engine\.max_model_len = 257: .*max_position_embeddings \(256\)"):
        open_sampler(engine_config(max_model_len=257), model)


def test_tensor_parallel_on_cpu_is_refused(model: ModelFolder) -> None:
    with pytest.raises(UserError, match=r"engine\.tensor_parallel_size = 2: must be 1 on CPU"):
        open_sampler(engine_config(tensor_parallel_size=2), model)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("Too little memory (1.5/2.0 GiB). Use less.\nMore"), "Too little memory (1.5/2.0 GiB)"),
        (AssertionError(), "AssertionError"),
        (
            ValueError("1 validation error for C\n  Value error, no such head [type=value_error, input=3]"),
            "no such head",
        ),
        (ValueError("1 validation error for C\nheads\n  Value error, no such head [type=value_error]"), "no such head"),
    ],
)
def test_reasons_are_one_sentence(error: Exception, reason: str) -> None:
    assert _reason(error) == reason


def test_cuda_without_gpus_is_refused(model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = build_config({"engine": {"max_model_len": 256, "data_parallel_size": 2}})
    with pytest.raises(UserError, match="need 2 CUDA devices and 1 are visible"):
        open_sampler(config, model)


@needs_vllm
def test_manifests_name_vllm_and_its_version() -> None:
    facts = engine_facts()
    assert facts["name"] == "vllm"
    assert facts["version"][0].isdigit()
