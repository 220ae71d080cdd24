"""The scoring stage: a score for every sample, resumed where it stopped, in the proxy's own tokens."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from megatron_ssd.artifacts.jsonl import JsonlWriter, read_jsonl
from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.generation import EngineConfig, ProxyConfig
from megatron_ssd.config.parallel import ClusterConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.generation import scoring
from megatron_ssd.generation.engine import ScoreRequest
from megatron_ssd.generation.scoring import SCORES_FILE, run_score
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from megatron_ssd.schema import ResponseScore, Sample

RESPONSES = ["return xs", "", "x = 1\nreturn x", "  \n", "<|im_end|> is text here", "return sorted(xs)" * 60]


class FakeSampler:
    """Scores a response by its length; after ``stop_after`` of them it stops as Ctrl-C would."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.asked: list[ScoreRequest] = []
        self._stop_after = stop_after

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[tuple[ScoreRequest, float]]:
        for request in requests:
            if len(self.asked) == self._stop_after:
                raise KeyboardInterrupt
            self.asked.append(request)
            yield request, -float(len(request.response_token_ids))


@pytest.fixture
def config(tmp_path: Path, tiny_hf_model: Path) -> RunConfig:
    run_dir = tmp_path / "run"
    stage = Stage(name="samples", run_dir=run_dir, config={}, inputs={})
    work = stage.begin()
    samples = [
        Sample(
            problem_id=f"p{number}", sample_index=0, messages=[{"role": "user", "content": f"task {number}"}],
            prompt_token_ids=[5], response=response, response_token_ids=[6], finish_reason="stop", seed=1,
            sampling_hash="", model_revision="",
        )
        for number, response in enumerate(RESPONSES)
    ]  # fmt: skip
    for shard in range(2):
        with JsonlWriter(work / f"shard-{shard:05}.jsonl") as writer:
            for record in samples[3 * shard : 3 * shard + 3]:
                writer.write(record.to_json())
    stage.publish(counts={"samples": len(samples)})
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
    assert len(sampler.asked) == 5


def test_the_log_has_the_scores_in_words(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        score(config, monkeypatch)
    highest = max(record.mean_logprob for record in published(config) if record.mean_logprob is not None)
    assert "5 of 6 samples scored; mean log-probability: 0% up to " in caplog.text
    assert f", 100% up to {highest:.2f}\n" in caplog.text


def test_the_proxy_reads_its_own_tokens(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, tiny_hf_model: Path
) -> None:
    asked = {request.key[0]: request for request in score(config, monkeypatch).asked}
    tokenizer = ChatTokenizer(tiny_hf_model)
    assert asked["p0"].prompt_token_ids == tokenizer.prompt_ids([{"role": "user", "content": "task 0"}])
    assert tokenizer.text(asked["p2"].response_token_ids) == RESPONSES[2]
    # A response that spells a marker is text: the marker's id would end the turn.
    assert tokenizer.text(asked["p4"].response_token_ids) == RESPONSES[4]
    # What does not fit after the prompt is not read.
    longest = asked["p5"]
    assert len(longest.prompt_token_ids) + len(longest.response_token_ids) == 200


def test_an_interrupted_run_resumes_and_scores_nothing_twice(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        score(config, monkeypatch, stop_after=2)
    partial = Path(config.run_dir) / "scores.partial" / SCORES_FILE
    kept = read_jsonl(partial)
    with partial.open("ab") as file:
        file.write(b'{"problem_id": "torn')
    again = score(config, monkeypatch)
    assert {request.key[0] for request in again.asked}.isdisjoint(record["problem_id"] for record in kept)
    assert len(published(config)) == 6
    assert not score(config, monkeypatch).asked  # up to date


def test_samples_without_any_response(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = sorted((Path(config.run_dir) / "samples").glob("shard-*.jsonl"))
    for shard in shards:
        records = [{**record, "response": ""} for record in read_jsonl(shard)]
        shard.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert not score(config, monkeypatch).asked
    assert all(record.mean_logprob is None for record in published(config))
    assert read_manifest(Path(config.run_dir) / "scores").counts == {"samples": 6, "scored": 0}


def test_errors_name_what_is_missing(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"proxy = null: .*proxy.path="):
        run_score(dataclasses.replace(config, proxy=None))
    with pytest.raises(UserError, match=r"proxy.path = .*nowhere: does not exist; set proxy.path"):
        run_score(dataclasses.replace(config, proxy=ProxyConfig(path=str(tmp_path / "nowhere"))))
    with pytest.raises(UserError, match=r"samples: does not exist; run launch/generate\.py"):
        run_score(dataclasses.replace(config, run_dir=str(tmp_path / "other")))
    with pytest.raises(UserError, match=r"proxy.max_model_len = 1"):
        ProxyConfig(path="x", max_model_len=1)
