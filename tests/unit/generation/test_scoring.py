"""Tests the scoring stage with an engine that does not need a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from megatron_ssd.artifacts.jsonl import read_jsonl
from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.config.cluster import ClusterConfig
from megatron_ssd.config.generation import EngineConfig, ProxyConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.generation import scoring
from megatron_ssd.generation.engine import ScoreRequest
from megatron_ssd.generation.scoring import SCORES_FILE, run_score
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from megatron_ssd.schema import ResponseScore, Sample
from tests.helpers.jsonl import write_jsonl
from tests.helpers.samples_run import publish_samples

RESPONSES = ["return xs", "", "x = 1\nreturn x", "  \n", "<|im_end|> is text here", "return sorted(xs)" * 60]


class FakeSampler:
    """Scores a response by its length, and stops like Ctrl-C after ``stop_after`` responses."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.requests: list[ScoreRequest] = []
        self._stop_after = stop_after

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[tuple[ScoreRequest, float]]:
        for request in requests:
            if len(self.requests) == self._stop_after:
                raise KeyboardInterrupt
            self.requests.append(request)
            yield request, -float(len(request.response_token_ids))


@pytest.fixture
def config(tmp_path: Path, tiny_hf_model: Path) -> RunConfig:
    run_dir = tmp_path / "run"
    samples = [
        Sample(
            problem_id=f"p{number}", sample_index=0, messages=[{"role": "user", "content": f"task {number}"}],
            prompt_token_ids=[5], response=response, response_token_ids=[6], finish_reason="stop", seed=1,
            sampling_hash="", model_revision="",
        )
        for number, response in enumerate(RESPONSES)
    ]  # fmt: skip
    publish_samples(run_dir, [samples[:3], samples[3:]])
    return RunConfig(
        run_dir=str(run_dir),
        proxy=ProxyConfig(path=str(tiny_hf_model), max_model_len=200),
        engine=EngineConfig(max_model_len=64),
        cluster=ClusterConfig(device="cpu"),
        precision=PrecisionConfig(transformer_engine=False),
    )


def score(config: RunConfig, monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> FakeSampler:
    sampler = FakeSampler(stop_after)
    monkeypatch.setattr(scoring, "open_sampler", lambda *_, **__: nullcontext(sampler))
    monkeypatch.setattr(scoring, "engine_facts", lambda config: {"name": "vllm", "version": "0"})
    run_score(config)
    return sampler


def published(config: RunConfig) -> list[ResponseScore]:
    return [ResponseScore.from_json(record) for record in read_jsonl(Path(config.run_dir) / "scores" / SCORES_FILE)]


def test_every_sample_has_a_score_in_order(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = score(config, monkeypatch)
    scores = published(config)
    assert [record.problem_id for record in scores] == [f"p{number}" for number in range(6)]
    assert [record.mean_logprob is None for record in scores] == [False, True, False, False, False, False]
    assert all(record.mean_logprob == -record.num_tokens for record in scores if record.mean_logprob is not None)
    manifest = read_manifest(Path(config.run_dir) / "scores")
    assert manifest.counts == {"samples": 6, "scored": 5}
    assert manifest.facts["mean_logprob_quantiles"]["1"] == max(
        -record.num_tokens for record in scores if record.num_tokens
    )
    assert len(sampler.requests) == 5


def test_the_log_summarises_the_scores(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        score(config, monkeypatch)
    highest = max(record.mean_logprob for record in published(config) if record.mean_logprob is not None)
    assert "5 of 6 samples scored; mean log-probability: 0% up to " in caplog.text
    assert f", 100% up to {highest:.2f}\n" in caplog.text


def test_the_proxy_uses_its_own_tokenizer(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, tiny_hf_model: Path
) -> None:
    requests = {request.key[0]: request for request in score(config, monkeypatch).requests}
    tokenizer = ChatTokenizer(tiny_hf_model)
    assert requests["p0"].prompt_token_ids == tokenizer.prompt_ids([{"role": "user", "content": "task 0"}])
    assert tokenizer.text(requests["p2"].response_token_ids) == RESPONSES[2]
    # The name of a special token in a response is text; its id would end the message.
    assert tokenizer.text(requests["p4"].response_token_ids) == RESPONSES[4]
    # The end of a response that does not fit into the context is left out.
    longest = requests["p5"]
    assert len(longest.prompt_token_ids) + len(longest.response_token_ids) == 200


def test_an_interrupted_run_resumes_and_scores_nothing_twice(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        score(config, monkeypatch, stop_after=2)
    partial = Path(config.run_dir) / "scores.partial" / SCORES_FILE
    kept = read_jsonl(partial)
    with partial.open("ab") as file:
        file.write(b'{"problem_id": "part')
    again = score(config, monkeypatch)
    assert {request.key[0] for request in again.requests}.isdisjoint(record["problem_id"] for record in kept)
    assert len(published(config)) == 6
    assert not score(config, monkeypatch).requests  # up to date


def test_samples_without_responses_have_no_score(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = sorted((Path(config.run_dir) / "samples").glob("shard-*.jsonl"))
    for shard in shards:
        write_jsonl(shard, [{**record, "response": ""} for record in read_jsonl(shard)])
    assert not score(config, monkeypatch).requests
    assert all(record.mean_logprob is None for record in published(config))
    assert read_manifest(Path(config.run_dir) / "scores").counts == {"samples": 6, "scored": 0}


def test_errors_name_what_is_missing(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"proxy = null: .*proxy.path="):
        run_score(dataclasses.replace(config, proxy=None))
    with pytest.raises(UserError, match=r"proxy.path = .*nowhere: does not exist; set proxy.path"):
        run_score(dataclasses.replace(config, proxy=ProxyConfig(path=str(tmp_path / "nowhere"))))
    with pytest.raises(UserError, match=r"samples: does not exist; run launch/generate\.py"):
        run_score(dataclasses.replace(config, run_dir=str(tmp_path / "other")))
    with pytest.raises(UserError, match=r"max_model_len = 1"):
        ProxyConfig(path="x", max_model_len=1)
