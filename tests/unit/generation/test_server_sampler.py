"""Tests the server sampler with fake servers that fail in many ways."""

from __future__ import annotations

import dataclasses
import socket
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.artifacts.hub import ModelFolder
from megatron_ssd.config.generation import EngineConfig, SamplingParams
from megatron_ssd.errors import UserError
from megatron_ssd.generation import vllm_server
from megatron_ssd.generation.engine import Completion, Request, ScoreRequest
from megatron_ssd.generation.server_protocol import server_version
from megatron_ssd.generation.vllm_server import ServerSampler
from tests.helpers.fake_engine import END, tokens_of
from tests.helpers.fake_server import Answer, FakeServer, completion
from tests.helpers.requests import CountedRequests, request, sample_all

BUSY: Answer = (503, {"error": {"message": "busy"}})


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(vllm_server, "_LONGEST_PAUSE", 0.05)


@pytest.fixture
def model(tmp_path: Path) -> ModelFolder:
    folder = tmp_path / "Tiny-Model"
    folder.mkdir()
    return ModelFolder(path=folder, revision="r", vocab_size=500, max_position_embeddings=256, end_token_ids=(END,))


def sampler(model: ModelFolder, *servers: FakeServer | str, **engine: Any) -> ServerSampler:
    urls = tuple(server if isinstance(server, str) else server.url for server in servers)
    settings = {"max_model_len": 256, "max_num_seqs": 4, **engine}
    config = EngineConfig(backend="server", endpoints=urls, **settings)
    return ServerSampler(config, model, end_token_ids=model.end_token_ids)


def requests(count: int) -> list[Request]:
    return [request(number, prompt_token_ids=[number, 7]) for number in range(count)]


def check_answers(sampler: ServerSampler, wanted: list[Request]) -> None:
    """Check that every request is answered once, with its own tokens."""
    with closing(sampler):
        completions = sample_all(sampler, wanted)
    assert completions == {request.key: tokens_of(request) for request in wanted}


def serve(model: ModelFolder, *arguments: Any, **settings: Any) -> FakeServer:
    return FakeServer(str(model.path), *arguments, **settings)


def dead_url() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def test_requests_contain_every_setting_that_determines_the_tokens(model: ModelFolder) -> None:
    params = SamplingParams(temperature=1.5, top_k=20, top_p=0.8, min_p=0.1, repetition_penalty=1.1)
    wanted = [request(0, params=params, prompt_token_ids=[3] * 250)]
    with serve(model) as server:
        check_answers(sampler(model, server), [dataclasses.replace(wanted[0], max_tokens=6)])
        with closing(sampler(model, server)) as one:
            list(one.sample(wanted))
    body = server.bodies[1]
    settings = {
        "model": "tiny", "seed": 0, "temperature": 1.5, "top_k": 20, "top_p": 0.8, "min_p": 0.1,
        "repetition_penalty": 1.1, "stop_token_ids": [END], "return_token_ids": True,
    }  # fmt: skip
    assert {key: body[key] for key in settings} == settings
    assert body["max_tokens"] == 6  # what the prompt leaves of the context


def test_requests_are_balanced_and_bounded(model: ModelFolder) -> None:
    with serve(model, seconds=0.02) as first, serve(model, seconds=0.02) as second:
        check_answers(sampler(model, first, second, max_num_seqs=1), requests(120))
    for server in (first, second):
        assert 4 < server.most_in_flight <= 17  # max_num_seqs, and 16 requests ahead
    assert min(len(first.bodies), len(second.bodies)) > 30


def test_requests_are_read_only_a_little_ahead(model: ModelFolder) -> None:
    wanted = CountedRequests(requests(500))
    with serve(model) as server, closing(sampler(model, server)) as one:
        next(iter(one.sample(wanted)))
        assert wanted.num_read < 60


@pytest.mark.parametrize("status", [429, 500, 503])
def test_requests_are_sent_again_to_a_busy_server(
    model: ModelFolder, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(model, lambda number, body: (status, BUSY[1]) if number % 5 == 0 else None) as server:
        check_answers(sampler(model, server), requests(40))
    assert len(server.bodies) > 40
    assert f"{server.url} failed (status {status}: busy)" in caplog.text


def test_requests_of_a_dead_endpoint_go_to_the_others(model: ModelFolder) -> None:
    first, second = serve(model), serve(model, seconds=0.005)
    with second, closing(sampler(model, first, second)) as both:
        stream = both.sample(requests(200))
        received = [next(stream) for _ in range(10)]
        first.close()
        received += stream
    assert Counter(request.key for request, _ in received) == Counter(request.key for request in requests(200))


def test_an_endpoint_that_always_fails_does_not_end_the_run(model: ModelFolder) -> None:
    with serve(model, lambda number, body: BUSY) as bad, serve(model, seconds=0.005) as good:
        check_answers(sampler(model, bad, good, max_num_seqs=2), requests(300))
    assert len(bad.bodies) < 100  # it gets only one request at a time


def test_if_all_servers_are_gone_the_run_ends_with_one_line(model: ModelFolder) -> None:
    received: list[Any] = []
    server = serve(model)
    with pytest.raises(UserError, match=r"failed more than engine\.max_retries = 3 times") as caught:
        drain(sampler(model, server, max_retries=3), requests(100), received, close_after=(server, 10))
    assert len(received) >= 10
    assert "\n" not in str(caught.value)


def drain(
    sampler: ServerSampler,
    wanted: list[Request],
    received: list[tuple[Request, Completion]],
    *,
    close_after: tuple[FakeServer, int],
) -> None:
    """Append the completions to ``received``, and close the server after that many of them."""
    with closing(sampler):
        for done in sampler.sample(wanted):
            received.append(done)
            if len(received) == close_after[1]:
                close_after[0].close()


def test_a_request_that_fails_everywhere_ends_the_run(model: ModelFolder) -> None:
    def behaviour(number: int, body: dict[str, Any]) -> Answer | None:
        return BUSY if body["seed"] == 5 else None

    with (
        serve(model, behaviour) as server,
        pytest.raises(UserError, match=r"the request \('p', 5\) failed more than engine\.max_retries = 2 times"),
    ):
        check_answers(sampler(model, server, max_retries=2), requests(40))


def test_a_response_that_takes_too_long_is_a_failure(model: ModelFolder) -> None:
    with (
        serve(model, seconds=1.0) as server,
        pytest.raises(UserError, match=r"no answer in 0\.05 s"),
    ):
        check_answers(sampler(model, server, max_retries=1, request_timeout=0.05), requests(1))


def changed(**changes: Any) -> Any:
    return lambda number, body: (200, completion(body, **changes))


@pytest.mark.parametrize(
    ("behaviour", "complaint"),
    [
        (lambda number, body: (400, {"error": {"message": "too\nlong"}}), "refused with status 400: too long"),
        (changed(token_ids=None), "returns no token ids"),
        (changed(prompt_token_ids=[1]), "read a prompt of 1 tokens, not the 2 sent"),
        (changed(token_ids=[9, 8], finish_reason="stop"), "ended a response with stop after 2 of 8 tokens"),
        (changed(token_ids=[9, 8], finish_reason="length"), "ended a response with length after 2 of 8 tokens"),
        (changed(token_ids=[9], finish_reason="abort"), "ended a response with abort"),
        (lambda number, body: (200, {"choices": []}), "does not answer with one completion"),
    ],
)
def test_errors_that_a_retry_cannot_fix_end_the_run_at_once(model: ModelFolder, behaviour: Any, complaint: str) -> None:
    with (
        serve(model, behaviour) as server,
        pytest.raises(UserError, match=complaint) as caught,
    ):
        check_answers(sampler(model, server), requests(1))
    assert len(server.bodies) == 1
    assert "\n" not in str(caught.value)


def check(model: ModelFolder, *servers: FakeServer | str) -> None:
    with closing(sampler(model, *servers)) as one:
        one.wait_ready()


def test_an_endpoint_that_is_unreachable_at_the_start_is_one_line(model: ModelFolder) -> None:
    with serve(model) as server, pytest.raises(UserError, match=r"/v1/models: cannot be reached"):
        check(model, server, dead_url())


def test_a_shorter_context_is_refused(model: ModelFolder) -> None:
    with (
        serve(model, max_model_len=255) as server,
        pytest.raises(UserError, match=r"max_model_len of 255: must take at least engine\.max_model_len = 256"),
    ):
        check(model, server)


def test_requests_go_only_to_servers_of_the_model_under_their_own_names(
    model: ModelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(model) as first, serve(model, name="other") as second, FakeServer("/elsewhere/export") as third:
        check_answers(sampler(model, first, second, third, max_num_seqs=1), requests(60))
    assert {body["model"] for body in first.bodies} == {"tiny"}
    assert {body["model"] for body in second.bodies} == {"other"}
    assert third.bodies == []
    assert f"{third.url} is not used for {model.path}: it serves tiny from /elsewhere/export" in caplog.text


@pytest.mark.parametrize(
    ("root", "name", "matches"),
    [
        ("/elsewhere/tiny-model", "tiny", True),
        ("Somebody/Tiny-Model", "tiny", True),
        ("/hub/models--Somebody--Tiny-Model/snapshots/abc", "tiny", True),
        ("/elsewhere/abc", "Tiny-Model", True),
        ("Somebody/Tiny-Model-2", "tiny", False),
        ("/", "tiny-model", False),  # another folder on this machine
    ],
)
def test_the_model_is_recognized_by_path_or_name(model: ModelFolder, root: str, name: str, matches: bool) -> None:
    with FakeServer(root, name=name) as server:
        if matches:
            check(model, server)
        else:
            with pytest.raises(UserError, match=rf"none serves the model .*; they serve {name} from {root}"):
                check(model, server)


def test_the_key_is_sent(model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    with serve(model) as server:
        check_answers(sampler(model, server), requests(1))
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_versions_are_the_servers_own(model: ModelFolder) -> None:
    with serve(model) as server:
        engine = EngineConfig(backend="server", endpoints=(server.url,))
        assert server_version(engine) == "0.0.fake"
    with pytest.raises(UserError, match="cannot be reached"):
        server_version(engine)


def test_servers_do_not_score(model: ModelFolder) -> None:
    request = ScoreRequest(key=("p", 1), prompt_token_ids=[1], response_token_ids=[2])
    with closing(sampler(model, "http://localhost:1/v1")) as one, pytest.raises(UserError, match="does not score"):
        list(one.score([request]))
