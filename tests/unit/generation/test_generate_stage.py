"""Tests the sampling stage with an engine that does not need a model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.generation import stage
from megatron_ssd.generation.plan import request_seed
from megatron_ssd.problems.stage import run_problems
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from tests.helpers.fake_engine import tokens_of
from tests.helpers.sampling_run import FakeSampler, elsewhere, generate, samples, worker
from tests.helpers.tokenizer_folders import with_template


def changed(config: RunConfig, section: str, **values: Any) -> RunConfig:
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


def test_every_planned_sample_is_recorded(config: RunConfig) -> None:
    sampler = generate(config)
    sampled = {request.key: tokens_of(request) for request in sampler.requests}
    records = samples(config)
    assert len(records) == len(sampled) == 60
    for sample in records:
        completion = sampled[sample.key]
        assert sample.response_token_ids == completion.token_ids
        assert sample.finish_reason == completion.finish_reason
        assert sample.seed == request_seed(5, sample.problem_id, sample.sample_index)
        assert sample.prompt_token_ids
        assert sample.messages[-1]["role"] == "user"
    assert len({sample.sampling_hash for sample in records}) == len({sample.model_revision for sample in records}) == 1


def end_of(config: RunConfig) -> int:
    assert config.model is not None
    generation = json.loads((Path(str(config.model.path)) / "generation_config.json").read_text())
    (end,) = generation["eos_token_id"]
    return int(end)


def test_manifest_counts_and_lineage(config: RunConfig) -> None:
    config = changed(config, "sampling", stop_token_ids=(17,))
    generate(config)
    manifest = read_manifest(Path(config.run_dir) / "samples")
    records = samples(config)
    assert manifest.engine == {"name": "vllm", "version": "0"}
    assert manifest.counts["samples"] == 60
    assert manifest.counts["response_tokens"] == sum(len(sample.response_token_ids) for sample in records)
    assert manifest.counts["stop"] + manifest.counts["length"] == 60
    assert set(manifest.inputs) == {"model", "problems", "template"}
    assert manifest.inputs["model"] == records[0].model_revision
    assert manifest.facts["prompt_opens_thinking"] is False
    assert manifest.facts["end_token_ids"] == [end_of(config), 17]


def test_the_base_models_configs_do_not_hide_the_tokenizers_end_token(config: RunConfig, tmp_path: Path) -> None:
    assert config.model is not None
    folder = tmp_path / "fine-tuned"
    shutil.copytree(str(config.model.path), folder)
    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, "eos_token_id": 0}))
    generate(changed(config, "model", path=str(folder)))
    assert read_manifest(Path(config.run_dir) / "samples").facts["end_token_ids"] == [0, end_of(config)]


def test_workers_and_resumes_of_a_run_see_the_same_time(config: RunConfig, tmp_path: Path) -> None:
    assert config.model is not None
    dated = "{{ strftime_now('%S.%f') }} {{ messages[0].content }}"
    folder = with_template(Path(str(config.model.path)), tmp_path / "dated", dated)
    config = changed(config, "model", path=str(folder))
    for rank in range(2):
        stage._tokenizer.cache_clear()  # each worker is a process
        generate(worker(config, rank, 2))
    tokenizer = ChatTokenizer(folder)
    assert len({tokenizer.text(sample.prompt_token_ids).split()[0] for sample in samples(config)}) == 1
    facts = read_manifest(Path(config.run_dir) / "samples").facts
    assert facts["prompt_time"] == (Path(config.run_dir) / "prompt_time.txt").read_text().strip()


def test_raw_prompts_are_the_text_of_the_task(config: RunConfig) -> None:
    assert config.model is not None
    tokenizer = ChatTokenizer(Path(str(config.model.path)))
    generate(changed(config, "prompt", mode="raw"))
    for sample in samples(config):
        assert sample.prompt_token_ids == tokenizer.text_ids(sample.messages[-1]["content"])
    with pytest.raises(UserError, match=r"prompt\.mode: 'raw' then, 'chat' now"):
        generate(config)


@pytest.mark.parametrize("stop_after", [0, 1, 37, 59])
def test_a_stopped_run_resumes_and_samples_nothing_twice(config: RunConfig, stop_after: int) -> None:
    generate(elsewhere(config, "uninterrupted"))
    with pytest.raises(KeyboardInterrupt):
        generate(config, FakeSampler(stop_after=stop_after))
    again = generate(config)
    assert len(again.requests) == 60 - stop_after
    manifests = [read_manifest(Path(c.run_dir) / "samples") for c in (config, elsewhere(config, "uninterrupted"))]
    assert manifests[0].content_hash == manifests[1].content_hash


def test_the_configuration_may_change_before_the_first_sample(config: RunConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        generate(changed(config, "sampling", max_tokens=13), FakeSampler(stop_after=0))
    assert (Path(config.run_dir) / "samples.partial" / "worker-0-of-1.spans.json").is_file()
    assert len(generate(config).requests) == 60
    assert not list(Path(config.run_dir).glob("*.replaced-*"))


def test_the_configuration_may_not_change_after_the_first_sample(config: RunConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        generate(changed(config, "sampling", max_tokens=13), FakeSampler(stop_after=1))
    with pytest.raises(UserError, match=r"max_tokens: 13 then, 12 now"):
        generate(config)


def test_an_incomplete_last_line_is_sampled_again(config: RunConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        generate(config, FakeSampler(stop_after=20))
    (file,) = (Path(config.run_dir) / "samples.partial").glob("worker-*.jsonl")
    file.write_bytes(file.read_bytes()[:-30])
    assert len(generate(config).requests) == 41
    assert len(samples(config)) == 60


def test_a_run_killed_before_publishing_needs_no_engine(config: RunConfig) -> None:
    run_problems(config)
    with patch.object(stage.Stage, "publish", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        generate(config)
    assert generate(config).requests == []
    assert len(samples(config)) == 60


def test_a_finished_run_is_up_to_date(config: RunConfig) -> None:
    generate(config)
    assert stage.samples_stage(config).is_current()
    assert generate(config).requests == []


@pytest.mark.parametrize(
    ("section", "values"),
    [("sampling", {"max_tokens": 13}), ("prompt", {"system": "Hi."})],
)
def test_another_configuration_needs_another_run_dir(config: RunConfig, section: str, values: dict[str, Any]) -> None:
    generate(config)
    with pytest.raises(UserError, match="another run_dir"):
        stage.samples_stage(changed(config, section, **values)).is_current()


def test_settings_that_only_change_the_speed_may_change(config: RunConfig) -> None:
    generate(config)
    assert stage.samples_stage(changed(config, "engine", data_parallel_size=4, max_num_seqs=8)).is_current()


def test_prompts_that_do_not_fit_are_recorded_as_skipped(config: RunConfig) -> None:
    generate(config)
    lengths = sorted(len(sample.prompt_token_ids) for sample in samples(config))
    small = changed(elsewhere(config, "small"), "engine", max_model_len=lengths[30])
    sampler = generate(small)
    records = samples(small)
    skipped = [sample for sample in records if sample.finish_reason == "skipped"]
    assert len(records) == 60
    assert 0 < len(skipped) == 60 - len(sampler.requests) < 60
    assert all(sample.skip_reason and not sample.response and not sample.response_token_ids for sample in skipped)
    assert read_manifest(Path(small.run_dir) / "samples").counts["skipped"] == len(skipped)


def test_a_tokenizer_of_another_model_is_refused(config: RunConfig, tiny_hf_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "narrow"
    folder.mkdir()
    for file in tiny_hf_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"vocab_size": 512', '"vocab_size": 500'))
    with pytest.raises(UserError, match=r"ids up to 511: the model's vocabulary has 500 entries"):
        generate(changed(config, "model", path=str(folder)))


def test_changed_problems_are_an_error(config: RunConfig) -> None:
    generate(config)
    other = dataclasses.replace(changed(config, "minicode", seed=1), replace=True)
    run_problems(other)
    with pytest.raises(UserError, match=r"input \(problems changed since\)"):
        stage.samples_stage(config).is_current()


def test_missing_problems_are_an_error(config: RunConfig) -> None:
    with pytest.raises(UserError, match=r"problems: does not exist; run launch/problems\.py"):
        stage.run_generate(config)


@pytest.mark.parametrize("section", ["model", "sampling"])
def test_a_missing_section_is_named(config: RunConfig, section: str) -> None:
    run_problems(config)
    with pytest.raises(UserError, match=f"^{section} = null"):
        stage.run_generate(dataclasses.replace(config, **{section: None}))


def test_a_missing_model_folder_is_named(config: RunConfig) -> None:
    with pytest.raises(UserError, match=r"model\.path = /nowhere: does not exist"):
        stage.run_generate(changed(config, "model", path="/nowhere"))
