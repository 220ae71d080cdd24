"""vLLM itself, on a random Qwen3 of two small layers. Two engines, started once, serve every test of running ones."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.artifacts.hub import ModelFolder, open_model
from megatron_ssd.config.build import build_config
from megatron_ssd.config.generation import SamplingConfig, SamplingParams
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.generation.engine import Completion, Request, ScoreRequest
from megatron_ssd.generation.engine_pool import EnginePool
from megatron_ssd.generation.engines import engine_facts, open_sampler
from megatron_ssd.generation.vllm_engine import _reason

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM (make venv)")
STOPS = (17, 400)  # further ids that end a response, in every test here
HOT = SamplingParams(temperature=2.0, top_k=20, top_p=0.9)


def engine_config(**engine: Any) -> RunConfig:
    settings = {
        "max_model_len": 256,
        "max_num_seqs": 64,
        "dtype": "float32",
        "enforce_eager": True,
        "data_parallel_size": 2,
        **engine,
    }
    sampling = {"train": {}, "eval": {}, "stop_token_ids": list(STOPS)}
    return build_config(
        {
            "cluster": {"device": "cpu"},
            "precision": {"transformer_engine": False},
            "engine": settings,
            "sampling": sampling,
        }
    )


@pytest.fixture(scope="module")
def model(tiny_hf_model: Path) -> ModelFolder:
    return open_model(str(tiny_hf_model))


@pytest.fixture(scope="module")
def pool(model: ModelFolder) -> Iterator[EnginePool]:
    with open_sampler(engine_config(), model) as pool:
        yield pool


@pytest.fixture(autouse=True)
def _logs_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a dead engine printed goes into a file that this test takes away."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def requests(count: int, *, decoding: SamplingParams = HOT, max_tokens: int = 24) -> list[Request]:
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
    mixed = [*requests(20, decoding=SamplingParams(temperature=0.0)), *wanted[50:]]
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
    completions = draw(pool, requests(200, decoding=SamplingParams(temperature=2.0), max_tokens=100)).values()
    ends = {*model.end_token_ids, *STOPS}
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}
    assert {completion.token_ids[-1] for completion in completions if completion.finish_reason == "stop"} == ends
    for completion in completions:
        if completion.finish_reason == "stop":
            assert completion.token_ids[-1] in ends
            assert not ends & set(completion.token_ids[:-1])
        else:
            assert not ends & set(completion.token_ids)
            assert len(completion.token_ids) == 100


@needs_vllm
def test_samples_of_one_prompt_are_those_of_prompts_apart(pool: EnginePool) -> None:
    # Four blocks of a prompt, which later samples find in the cache of prefixes; a fresh prompt pushes none out.
    prompt = [3 + place % 97 for place in range(70)]
    wanted = [
        Request(key=(number,), prompt_token_ids=prompt, seed=number, decoding=HOT, max_tokens=24)
        for number in range(40)
    ]
    together = draw(pool, wanted)
    alone = {request.key: next(pool.sample([request])) for request in wanted[::8]}
    assert all(together[key] == completion for key, completion in alone.items())
    assert len({tuple(completion.token_ids) for completion in together.values()}) > 30


@needs_vllm
def test_min_p_of_one_is_greedy(pool: EnginePool) -> None:
    # The first request's prompt is the padding token, whose embedding is zero: all logits are equal there.
    wanted = requests(21, decoding=SamplingParams(temperature=2.0, min_p=1.0), max_tokens=8)[1:]
    greedy = requests(21, decoding=SamplingParams(temperature=0.0), max_tokens=8)[1:]
    assert draw(pool, wanted) == draw(pool, greedy)


@needs_vllm
def test_scores_are_the_means_of_transformers_log_softmax(pool: EnginePool, model: ModelFolder) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    lengths = [(1, 1), (1, 5), (40, 1), (70, 60), (200, 56), (255, 1)]  # the last two fill the context
    wanted = [
        ScoreRequest(
            key=(prompt, response),
            prompt_token_ids=[2 + place * 7 % 500 for place in range(prompt)],
            response_token_ids=[3 + (prompt + place * 11) % 500 for place in range(response)],
        )
        for prompt, response in lengths
    ]
    scores = {score.key: score.mean_logprob for score in pool.score(wanted)}
    assert scores.keys() == {request.key for request in wanted}
    reference = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    for request in wanted:
        ids = torch.tensor([request.prompt_token_ids + request.response_token_ids])
        with torch.no_grad():
            logprobs = reference(ids).logits[0, :-1].log_softmax(-1)
        start = len(request.prompt_token_ids)
        expected = logprobs.gather(1, ids[0, 1:, None])[start - 1 :].mean().item()
        assert scores[request.key] == pytest.approx(expected, abs=1e-5)


@needs_vllm
def test_responses_end_with_the_context(pool: EnginePool) -> None:
    longest = Request(key=("long",), prompt_token_ids=[9] * 255, seed=1, decoding=HOT, max_tokens=50)
    (completion,) = pool.sample([longest])
    assert len(completion.token_ids) == 1


@needs_vllm
@pytest.mark.parametrize("penalty", [1.0, 2.0])
def test_greedy_is_what_transformers_gives(pool: EnginePool, model: ModelFolder, penalty: float) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    wanted = requests(12, decoding=SamplingParams(temperature=0.0, repetition_penalty=penalty), max_tokens=8)
    drawn = draw(pool, wanted)
    reference = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    ends = [*model.end_token_ids, *STOPS]
    for request in wanted:
        prompt = torch.tensor([request.prompt_token_ids])
        with torch.no_grad():
            ids = reference.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False,
                repetition_penalty=penalty, eos_token_id=ends,
            )  # fmt: skip
        assert drawn[request.key].token_ids == ids[0, prompt.shape[1] :].tolist()


@needs_vllm
def test_a_killed_engine_is_started_again_and_every_request_answered_once(
    pool: EnginePool, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = requests(300, decoding=SamplingParams(temperature=2.0), max_tokens=100)
    received: dict[object, Completion] = {}
    for number, completion in enumerate(pool.sample(wanted)):
        assert completion.key not in received
        received[completion.key] = completion
        if number == 20:
            os.kill(pool._engines[0]._process.pid, signal.SIGKILL)
    assert len(received) == len(wanted)
    assert "engine process with status -9 died" in caplog.text
    assert "1 of engine.max_restarts = 3" in caplog.text
    # A response is what it would have been, whichever engine gave it in the end.
    assert draw(pool, wanted[::7]) == {request.key: received[request.key] for request in wanted[::7]}
    assert pool._engines[0].is_ready


@needs_vllm
@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ({"max_num_seq": 3}, r"engine\.options\.max_num_seq: is no argument .* did you mean max_num_seqs"),
        ({"load_format": "nonsense"}, r"vLLM with the model .*did not start"),
    ],
)
def test_options_that_vllm_does_not_take_are_one_line(
    model: ModelFolder, option: dict[str, Any], complaint: str
) -> None:
    with (
        pytest.raises(UserError, match=complaint) as caught,
        open_sampler(engine_config(data_parallel_size=1, options=option), model) as pool,
    ):
        pool.wait_ready()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "instead"),
    [("dtype", "set engine.dtype instead"), ("skip_tokenizer_init", "leave it out"),
     ("enable_chunked_prefill", "leave it out")],
)  # fmt: skip
def test_options_that_the_project_sets_are_refused(model: ModelFolder, name: str, instead: str) -> None:
    with pytest.raises(UserError, match=rf"engine\.options\.{name}: .* sets itself; {instead}"):
        open_sampler(engine_config(options={name: 1}), model)


def test_stop_tokens_outside_the_vocabulary_are_refused(model: ModelFolder) -> None:
    config = dataclasses.replace(engine_config(), sampling=SamplingConfig(
        train=HOT, eval=HOT, stop_token_ids=(512,)))  # fmt: skip
    with pytest.raises(UserError, match=r"stop_token_ids = \[512\]: .* ends at 511"):
        open_sampler(config, model)


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
    facts = engine_facts(engine_config())
    assert (facts["name"], facts["backend"]) == ("vllm", "vllm")
    assert facts["version"][0].isdigit()
