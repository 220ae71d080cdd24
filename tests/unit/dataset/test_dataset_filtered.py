"""Tests filters in the dataset stage, with several shards, several workers and interruptions."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from megatron_ssd.artifacts.jsonl import read_jsonl
from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.config.dataset import LoopConfig, PreprocessConfig
from megatron_ssd.dataset.set_filters import Facts, FirstPass
from megatron_ssd.dataset.stage import run_preprocess
from megatron_ssd.errors import UserError
from megatron_ssd.schema import Sample
from tests.helpers.samples_run import documents, numbered, publish_samples, publish_scores, run_config

LOOP = LoopConfig(min_repeats=2, min_tokens=4)
MANY = [
    [
        numbered(0, "Two\n```python\nx = 1\n```"),
        numbered(1, "Two\n\n```python\nx  = 1\n```"),  # the same program for another problem
        replace(numbered(0, "Two\n\n```python\nx  = 1\n```"), sample_index=1),
        replace(numbered(2, "On\nand on and on", "length"), response_token_ids=[20, 21, 22, 23, 22, 23, 22]),
    ],
    [
        numbered(3, "Two\n```python\nx = (\n```"),
        replace(numbered(4, "On\nand off", "length"), response_token_ids=[20, 21, 22, 23, 24]),
        replace(numbered(5, "", "skipped"), response_token_ids=[]),
        numbered(6, "A longer answer\n```\nint(x)\n```"),
    ],
]


def kept(run_dir: Path) -> list[tuple[str, int]]:
    return [(record["problem_id"], record["sample_index"]) for record in read_jsonl(run_dir / "dataset" / "ids.jsonl")]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_filter_together_over_all_shards(tmp_path: Path, num_workers: int) -> None:
    publish_samples(tmp_path, MANY)
    config = run_config(tmp_path, loop=LOOP, drop_duplicates=True, drop_unparsable=True, drop_shortest_fraction=0.2,
                        length_capped="mask_end", mask_end_tokens=2)  # fmt: skip
    run_preprocess(dataclasses.replace(config, preprocess=PreprocessConfig(num_workers=num_workers)))
    manifest = read_manifest(tmp_path / "dataset")
    assert manifest.dropped == {"duplicate": 1, "shortest": 1, "skipped": 1, "unparsable": 1}
    assert manifest.counts == {
        "samples": 8, "documents": 4, "prompt_tokens": 8, "response_tokens": 4 + 4 + 2 + 4, "responses": 7,
        "no_code": 2, "length_capped": 2, "looping": 1, "end_masked": 1, "end_masked_tokens": 5,
    }  # fmt: skip
    assert kept(tmp_path) == [("p0", 0), ("p1", 0), ("p2", 0), ("p6", 0)]
    assert documents(tmp_path)[2] == ([1, 12], [20, 21])


def test_without_a_set_filter_there_is_no_first_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FirstPass, "measure", lambda *args: pytest.fail("samples were measured"))
    publish_samples(tmp_path, MANY)
    run_preprocess(run_config(tmp_path, loop=LOOP, drop_no_code=True, drop_loops=True))
    assert read_manifest(tmp_path / "dataset").dropped == {"no_code": 1, "looping": 1, "skipped": 1}


def test_the_share_without_code_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish_samples(tmp_path, MANY)
    with caplog.at_level("INFO"):
        run_preprocess(run_config(tmp_path, loop=LOOP))
    assert "28.6 % of the 7 sampled responses contain no program that can be extracted" in caplog.text
    assert "2 were cut at the length limit, 1 of these while they repeated themselves" in caplog.text


def test_prompts_that_open_the_reasoning_are_known_from_the_samples(tmp_path: Path) -> None:
    publish_samples(tmp_path, MANY, facts={"prompt_opens_thinking": True})
    run_preprocess(run_config(tmp_path))
    assert read_manifest(tmp_path / "dataset").counts["no_code"] == 7


def test_a_band_of_scores_over_all_shards(tmp_path: Path) -> None:
    publish_samples(tmp_path, MANY)
    with pytest.raises(UserError, match=r"filters\.proxy_band: needs the scores"):
        run_preprocess(run_config(tmp_path, proxy_band=(0.2, 0.8)))
    scored = [sample for shard in MANY for sample in shard if sample.problem_id != "p6"]
    scores = [{"problem_id": sample.problem_id, "sample_index": sample.sample_index, "mean_logprob": -number}
              for number, sample in enumerate(scored)]  # fmt: skip
    publish_scores(tmp_path, scores)
    run_preprocess(run_config(tmp_path, proxy_band=(0.2, 0.8)))
    manifest = read_manifest(tmp_path / "dataset")
    assert manifest.dropped == {"skipped": 1, "no_proxy_score": 1, "outside_proxy_band": 2}
    assert kept(tmp_path) == [("p1", 0), ("p0", 1), ("p2", 0), ("p3", 0)]
    assert manifest.inputs["scores"] == read_manifest(tmp_path / "scores").content_hash


def test_scores_of_other_samples_are_refused(tmp_path: Path) -> None:
    publish_samples(tmp_path, MANY)
    publish_scores(tmp_path, [{"problem_id": "p0", "sample_index": 0, "mean_logprob": -1.0}], samples="another hash")
    with pytest.raises(UserError, match=r"scores other samples than those in .*; run launch/score\.py again"):
        run_preprocess(run_config(tmp_path, proxy_band=(0.2, 0.8)))


def test_a_killed_first_pass_resumes_with_the_unmeasured_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_samples(tmp_path, MANY)
    config = run_config(tmp_path, drop_duplicates=True)
    measured: list[str] = []
    measure = FirstPass.measure

    def stop_in_second_shard(first_pass: FirstPass, samples: Iterator[Sample]) -> Facts:
        found = list(samples)
        measured.append(found[0].problem_id)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return measure(first_pass, found)

    monkeypatch.setattr(FirstPass, "measure", stop_in_second_shard)
    with pytest.raises(KeyboardInterrupt):
        run_preprocess(config)
    run_preprocess(config)
    assert measured == ["p0", "p3", "p3"]
    assert read_manifest(tmp_path / "dataset").dropped == {"duplicate": 1, "skipped": 1}
