"""The sampling stage, with an engine that needs no model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.artifacts.jsonl import read_jsonl
from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.config.build import build_config
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.generation import stage
from megatron_ssd.generation.plan import request_seed
from megatron_ssd.generation.sampler import Completion, Request
from megatron_ssd.problems.stage import run_problems
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from megatron_ssd.schema import Sample
from tests.unit.generation.fake_engine import tokens_of


class FakeSampler:
    """Draws in this process; ``stop_after`` completions it stops as Ctrl-C would."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.drawn: list[Request] = []
        self._stop_after = stop_after

    def wait_ready(self) -> None:
        pass

    def sample(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in sorted(requests, key=lambda request: request.seed):  # any order but the plan's
            if len(self.drawn) == self._stop_after:
                raise KeyboardInterrupt
            self.drawn.append(request)
            yield tokens_of(request)


@pytest.fixture
def config(tiny_hf_model: Path, tmp_path: Path) -> RunConfig:
    model = {
        "name": "tiny", "model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 128, "vocab_size": 512,
        "max_position_embeddings": 256, "path": str(tiny_hf_model),
    }  # fmt: skip
    return build_config(
        {
            "run_dir": str(tmp_path / "run"),
            "seed": 5,
            "model": model,
            "problems": {"name": "minicode"},
            "minicode": {"num_train_problems": 30},
            "sampling": {"train": {"temperature": 1.5}, "eval": {}, "max_tokens": 12, "num_samples": 2},
            "prompt": {"template": "minicode"},
            "engine": {"max_model_len": 256},
            "generation": {"shard_rows": 25},
            "training": {"seq_length": 128},
            "cluster": {"device": "cpu"},
            "precision": {"transformer_engine": False},
        }
    )


def generate(config: RunConfig, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> FakeSampler:
    sampler = FakeSampler(**settings)
    monkeypatch.setattr(stage, "open_sampler", lambda config, model: nullcontext(sampler))
    monkeypatch.setattr(stage, "engine_facts", lambda: {"name": "vllm", "version": "0"})
    run_problems(config)
    stage.run_generate(config)
    return sampler


def samples(config: RunConfig) -> list[Sample]:
    shards = sorted((Path(config.run_dir) / "samples").glob("shard-*.jsonl"))
    return [Sample.from_json(row) for shard in shards for row in read_jsonl(shard)]


def elsewhere(config: RunConfig, name: str) -> RunConfig:
    return dataclasses.replace(config, run_dir=str(Path(config.run_dir).parent / name))


def changed(config: RunConfig, section: str, **values: Any) -> RunConfig:
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


def test_every_planned_sample_is_there_as_drawn(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = generate(config, monkeypatch)
    drawn = {request.key: tokens_of(request) for request in sampler.drawn}
    rows = samples(config)
    assert len(rows) == len(drawn) == 60
    for row in rows:
        completion = drawn[row.key]
        assert row.response_token_ids == completion.token_ids
        assert row.finish_reason == completion.finish_reason
        assert row.seed == request_seed(5, row.problem_id, row.sample_index)
        assert row.prompt_token_ids
        assert row.messages[-1]["role"] == "user"
    assert len({row.sampling_hash for row in rows}) == len({row.model_revision for row in rows}) == 1


def test_manifest_counts_and_lineage(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(config, monkeypatch)
    manifest = read_manifest(Path(config.run_dir) / "samples")
    rows = samples(config)
    assert manifest.engine == {"name": "vllm", "version": "0"}
    assert manifest.counts["samples"] == 60
    assert manifest.counts["response_tokens"] == sum(len(row.response_token_ids) for row in rows)
    assert manifest.counts["stop"] + manifest.counts["length"] == 60
    assert set(manifest.inputs) == {"model", "problems", "template"}
    assert manifest.inputs["model"] == rows[0].model_revision
    assert manifest.facts["prompt_opens_thinking"] is False


def test_raw_prompts_are_the_tasks_text(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.model is not None
    tokenizer = ChatTokenizer(Path(str(config.model.path)))
    generate(changed(config, "prompt", mode="raw"), monkeypatch)
    for row in samples(config):
        assert row.prompt_token_ids == tokenizer.text_ids(row.messages[-1]["content"])
    with pytest.raises(UserError, match=r"prompt\.mode: 'raw' then, 'chat' now"):
        generate(config, monkeypatch)


@pytest.mark.parametrize("stop_after", [0, 1, 37, 59])
def test_a_stopped_run_goes_on_and_redoes_nothing(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    generate(elsewhere(config, "whole"), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        generate(config, monkeypatch, stop_after=stop_after)
    again = generate(config, monkeypatch)
    assert len(again.drawn) == 60 - stop_after
    manifests = [read_manifest(Path(c.run_dir) / "samples") for c in (config, elsewhere(config, "whole"))]
    assert manifests[0].content_hash == manifests[1].content_hash


def test_a_torn_last_line_is_drawn_again(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        generate(config, monkeypatch, stop_after=20)
    shard = max((Path(config.run_dir) / "samples.partial").glob("shard-*.jsonl"))
    shard.write_bytes(shard.read_bytes()[:-30])
    assert len(generate(config, monkeypatch).drawn) == 41
    assert len(samples(config)) == 60


def test_a_run_killed_before_publishing_needs_no_engine(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run_problems(config)
    with monkeypatch.context() as patch:
        patch.setattr(stage.Stage, "publish", lambda self, **facts: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            generate(config, monkeypatch)
    assert generate(config, monkeypatch).drawn == []
    assert len(samples(config)) == 60


def test_finished_run_is_up_to_date(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(config, monkeypatch)
    assert stage.samples_stage(config).is_current()
    assert generate(config, monkeypatch).drawn == []


@pytest.mark.parametrize(
    ("section", "values"),
    [("sampling", {"max_tokens": 13}), ("prompt", {"system": "Hi."})],
)
def test_another_configuration_is_another_run(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, section: str, values: dict[str, Any]
) -> None:
    generate(config, monkeypatch)
    with pytest.raises(UserError, match="another run_dir"):
        stage.samples_stage(changed(config, section, **values)).is_current()


def test_speed_settings_are_no_other_run(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(config, monkeypatch)
    assert stage.samples_stage(changed(config, "engine", data_parallel_size=4, max_num_seqs=8)).is_current()


def test_prompts_that_do_not_fit_are_recorded_as_skipped(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(config, monkeypatch)
    lengths = sorted(len(row.prompt_token_ids) for row in samples(config))
    small = changed(elsewhere(config, "small"), "engine", max_model_len=lengths[30])
    sampler = generate(small, monkeypatch)
    rows = samples(small)
    skipped = [row for row in rows if row.finish_reason == "skipped"]
    assert len(rows) == 60
    assert 0 < len(skipped) == 60 - len(sampler.drawn) < 60
    assert all(row.skip_reason and not row.response and not row.response_token_ids for row in skipped)
    assert read_manifest(Path(small.run_dir) / "samples").counts["skipped"] == len(skipped)


def test_tokenizer_of_another_model_is_refused(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, tiny_hf_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "narrow"
    folder.mkdir()
    for file in tiny_hf_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"vocab_size": 512', '"vocab_size": 500'))
    with pytest.raises(UserError, match=r"ids up to 511: the model's vocabulary has 500 entries"):
        generate(changed(config, "model", path=str(folder)), monkeypatch)


def test_other_problems_are_another_run(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(config, monkeypatch)
    other = dataclasses.replace(changed(config, "minicode", seed=1), replace=True)
    run_problems(other)
    with pytest.raises(UserError, match=r"input \(problems changed since\)"):
        stage.samples_stage(config).is_current()


def test_problems_come_first(config: RunConfig) -> None:
    with pytest.raises(UserError, match="run the stage that makes problems/ to its end"):
        stage.run_generate(config)


@pytest.mark.parametrize("section", ["model", "sampling"])
def test_missing_section_is_named(config: RunConfig, section: str) -> None:
    run_problems(config)
    with pytest.raises(UserError, match=f"^{section} = null"):
        stage.run_generate(dataclasses.replace(config, **{section: None}))


def test_missing_model_folder_is_named(config: RunConfig) -> None:
    with pytest.raises(UserError, match=r"model\.path = /nowhere: does not exist"):
        stage.run_generate(changed(config, "model", path="/nowhere"))
