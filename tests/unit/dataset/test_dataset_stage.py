"""Tests the dataset stage: token ids, counts, workers, and how an interrupted run resumes."""

import json
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import pytest
from msgspec.structs import replace
from tokenizers import Tokenizer

from megatron_ssd.artifacts.jsonl import read_jsonl
from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.dataset import PreprocessConfig
from megatron_ssd.dataset import convert
from megatron_ssd.dataset import stage as dataset_stage
from megatron_ssd.dataset.indexed import IndexedWriter
from megatron_ssd.dataset.stage import run_preprocess
from megatron_ssd.errors import UserError
from megatron_ssd.prompts.tokenizer import fast_tokenizer
from megatron_ssd.schema import Sample
from tests.helpers.samples_run import EOS, SHARDS, documents, numbered, publish_samples, run_config


def test_documents_have_the_sampled_ids(tmp_path: Path) -> None:
    publish_samples(tmp_path, SHARDS)
    run_preprocess(run_config(tmp_path))
    kept = [SHARDS[0][0], SHARDS[0][1], SHARDS[1][1], SHARDS[1][2]]
    assert documents(tmp_path) == [(s.prompt_token_ids, s.response_token_ids) for s in kept]
    assert [record["problem_id"] for record in read_jsonl(tmp_path / "dataset" / "ids.jsonl")] == [
        "p0",
        "p1",
        "p4",
        "p5",
    ]
    assert documents(tmp_path)[1][1][-1] != EOS  # cut at the length cap: no end token is added


def test_manifest_counts_and_lineage(tmp_path: Path) -> None:
    publish_samples(tmp_path, SHARDS)
    run_preprocess(run_config(tmp_path))
    manifest = read_manifest(tmp_path / "dataset")
    assert manifest.counts == {
        "samples": 6, "documents": 4, "prompt_tokens": 8, "response_tokens": 15, "responses": 6, "no_code": 6,
        "length_capped": 1, "looping": 0, "end_masked": 0, "end_masked_tokens": 0,
    }  # fmt: skip
    assert manifest.dropped == {"empty": 1, "one_line_stub": 1}
    assert manifest.inputs == {"samples": read_manifest(tmp_path / "samples").content_hash}
    assert manifest.engine["name"] == "megatron-core"
    assert {output["path"] for output in manifest.outputs} == {"samples.bin", "samples.idx", "ids.jsonl", "counts.json"}


def test_shortest_fraction_is_taken_over_all_shards(tmp_path: Path) -> None:
    publish_samples(tmp_path, SHARDS)
    run_preprocess(run_config(tmp_path, drop_shortest_fraction=0.5))
    assert [record["problem_id"] for record in read_jsonl(tmp_path / "dataset" / "ids.jsonl")] == ["p4", "p5"]
    assert read_manifest(tmp_path / "dataset").dropped == {"empty": 1, "one_line_stub": 1, "shortest": 2}


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_a_killed_run_resumes_with_the_unfinished_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fraction: float
) -> None:
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    for run_dir in (uninterrupted, killed):
        publish_samples(run_dir, SHARDS)
    run_preprocess(run_config(uninterrupted, drop_shortest_fraction=fraction))

    added = []
    add = IndexedWriter.add

    def stop_in_second_shard(writer: IndexedWriter, *sequences: list[int]) -> None:
        if sequences[0][-1] == 15:
            raise KeyboardInterrupt
        added.append(sequences[0][-1])
        add(writer, *sequences)

    monkeypatch.setattr(IndexedWriter, "add", stop_in_second_shard)
    with pytest.raises(KeyboardInterrupt):
        run_preprocess(run_config(killed, drop_shortest_fraction=fraction))
    assert not (killed / "dataset").exists()

    in_first_shard = [number for number in added if number < 13]
    added.clear()
    monkeypatch.setattr(IndexedWriter, "add", lambda writer, *s: (added.append(s[0][-1]), add(writer, *s)))
    run_preprocess(run_config(killed, drop_shortest_fraction=fraction))
    assert not set(added) & set(in_first_shard)
    assert read_manifest(killed / "dataset").outputs == read_manifest(uninterrupted / "dataset").outputs


def test_a_run_killed_before_publishing_only_publishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_samples(tmp_path, SHARDS)
    with patch.object(Stage, "publish", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        run_preprocess(run_config(tmp_path))
    monkeypatch.setattr(convert, "iter_samples", lambda *args, **kwargs: pytest.fail("samples were read again"))
    run_preprocess(run_config(tmp_path))
    assert read_manifest(tmp_path / "dataset").counts["documents"] == 4


def test_a_second_run_does_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish_samples(tmp_path, SHARDS)
    run_preprocess(run_config(tmp_path))
    with caplog.at_level("INFO"):
        run_preprocess(run_config(tmp_path))
    assert "dataset: up to date" in caplog.text


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    publish_samples(tmp_path, SHARDS)
    shard = tmp_path / "samples" / "shard-00001.jsonl"
    lines = shard.read_text().splitlines()
    shard.write_text("\n".join([lines[0], lines[1][:40], lines[2]]) + "\n")
    with pytest.raises(UserError, match=r"shard-00001.jsonl:2"):
        run_preprocess(run_config(tmp_path))
    shard.write_text("\n".join([lines[0], json.dumps({"problem_id": "p"}), lines[2]]) + "\n")
    with pytest.raises(UserError, match=r"shard-00001.jsonl:2.*missing required field"):
        run_preprocess(run_config(tmp_path))
    shard.write_text("\n".join(lines) + "\n")
    run_preprocess(run_config(tmp_path))  # the first shard is reused, and the fixed one is read
    assert read_manifest(tmp_path / "dataset").counts["samples"] == 6


def test_missing_samples_a_wrong_vocabulary_and_no_sample_left_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run launch/generate\.py"):
        run_preprocess(run_config(tmp_path))
    publish_samples(tmp_path, SHARDS)
    with pytest.raises(UserError, match=r"token id 12: is outside the vocabulary of model.vocab_size = 12"):
        run_preprocess(run_config(tmp_path, vocab_size=12))
    other = tmp_path / "other"
    empty = [[replace(sample, response="") for sample in shard] for shard in SHARDS[:2]]
    publish_samples(other, empty)
    count = sum(map(len, empty))
    with pytest.raises(UserError, match=f"the filters drop all of them: {count} for empty;"):
        run_preprocess(run_config(other))


WORD_LENGTH = 2  # letters of the word that is written in single letters


def _is_word(tokenizer: Tokenizer, id_: int) -> bool:
    word = tokenizer.id_to_token(id_)
    return word.isalpha() and len(word) == WORD_LENGTH


def tokenized_shards(folder: Path) -> tuple[list[list[Sample]], int]:
    """Five shards with the tokenizer's ids, except for one word of ``p3`` in single letters; and the end token's id."""
    tokenizer = fast_tokenizer(folder)
    end = tokenizer.token_to_id("<|im_end|>")
    texts = [f"```python\nx = {number}\nprint(x)\n```" for number in range(10)]
    samples = [
        replace(numbered(0), problem_id=f"p{number}", response=text,
                            response_token_ids=[*tokenizer.encode(text, add_special_tokens=False).ids, end])
        for number, text in enumerate(texts)
    ]  # fmt: skip
    ids = samples[3].response_token_ids
    index, word = next((i, tokenizer.id_to_token(id_)) for i, id_ in enumerate(ids) if _is_word(tokenizer, id_))
    letters = [tokenizer.token_to_id(letter) for letter in word]
    assert len(letters) == WORD_LENGTH
    samples[3] = replace(samples[3], response_token_ids=[*ids[:index], *letters, *ids[index + 1 :]])
    samples[4] = replace(samples[4], finish_reason="length",
                                     response_token_ids=samples[4].response_token_ids[:-1])  # fmt: skip
    return [samples[start : start + 2] for start in range(0, 10, 2)], end


@pytest.mark.parametrize("ids", ["sampled", "retokenized"])
def test_the_bytes_do_not_depend_on_the_number_of_workers(
    tmp_path: Path, tiny_tokenizer: Path, ids: Literal["sampled", "retokenized"]
) -> None:
    shards, _ = tokenized_shards(tiny_tokenizer)
    found = []
    for num_workers in (1, 2, 3):
        run_dir = tmp_path / str(num_workers)
        publish_samples(run_dir, shards)
        preprocess = PreprocessConfig(ids=ids, compare=True, num_workers=num_workers)
        run_preprocess(run_config(run_dir, vocab_size=512, model_path=tiny_tokenizer, preprocess=preprocess))
        found.append(read_manifest(run_dir / "dataset"))
    assert {output["path"] for output in found[0].outputs} >= {"samples.bin", "samples.idx", "differences.jsonl"}
    assert found[0].outputs == found[1].outputs == found[2].outputs
    assert found[0].identity == found[1].identity == found[2].identity


def test_sampled_ids_are_kept_and_differences_from_retokenized_ids_are_recorded(
    tmp_path: Path, tiny_tokenizer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards, end = tokenized_shards(tiny_tokenizer)
    samples = [sample for shard in shards for sample in shard]
    kept = {}
    for ids in ("sampled", "retokenized"):
        run_dir = tmp_path / ids
        publish_samples(run_dir, shards)
        preprocess = PreprocessConfig(ids=ids, compare=ids == "sampled")  # type: ignore[arg-type]
        with caplog.at_level("INFO"):
            run_preprocess(run_config(run_dir, vocab_size=512, model_path=tiny_tokenizer, preprocess=preprocess))
        kept[ids] = [response for _, response in documents(run_dir)]
        (difference,) = read_jsonl(run_dir / "dataset" / "differences.jsonl")
        assert (difference["problem_id"], difference["sample_index"]) == ("p3", 0)
        start = difference["position"]
        assert difference["sampled"] == samples[3].response_token_ids[max(0, start - 4) : start + 5]
        assert difference["differing_tokens"] == WORD_LENGTH
        assert difference["retokenized_tokens"] == difference["sampled_tokens"] - WORD_LENGTH + 1
        manifest = read_manifest(run_dir / "dataset")
        assert (manifest.counts["differing_samples"], manifest.counts["differing_tokens"]) == (1, WORD_LENGTH)
        assert manifest.inputs["model_tokenizer"]
        assert "1 of 10 responses differ from what was sampled, in 2 tokens" in caplog.text
    assert kept["sampled"] == [sample.response_token_ids for sample in samples]
    again = kept["retokenized"]
    assert again[:3] + again[4:] == kept["sampled"][:3] + kept["sampled"][4:]
    assert len(again[3]) == len(kept["sampled"][3]) - WORD_LENGTH + 1
    assert again[3][-1] == end
    assert again[4][-1] != end  # cut at the length cap: the model did not stop


def test_a_comparison_needs_a_tokenizer(tmp_path: Path) -> None:
    publish_samples(tmp_path, SHARDS)
    with pytest.raises(UserError, match=r"model.path = null"):
        run_preprocess(run_config(tmp_path, preprocess=PreprocessConfig(compare=True)))
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match="has no tokenizer that loads"):
        run_preprocess(
            run_config(tmp_path, model_path=tmp_path / "model", preprocess=PreprocessConfig(ids="retokenized"))
        )


def test_a_worker_that_fails_stops_the_run_and_finished_shards_are_kept(tmp_path: Path) -> None:
    shards = [[numbered(number)] for number in range(6)]
    publish_samples(tmp_path, shards)
    broken = tmp_path / "samples" / "shard-00005.jsonl"
    line = broken.read_text()
    broken.write_text(line[:30] + "\n")
    config = run_config(tmp_path, preprocess=PreprocessConfig(num_workers=2))
    with pytest.raises(UserError, match=r"shard-00005.jsonl:1"):
        run_preprocess(config)
    done = sorted((tmp_path / "dataset.partial" / "parts").glob("shard-*.json"))
    assert len(done) >= 4  # the last shard starts when at most one other is unfinished
    finished = done[0].with_suffix(".bin")
    before = finished.stat().st_mtime_ns
    broken.write_text(line)
    again = run_config(tmp_path, preprocess=PreprocessConfig(num_workers=1))  # resumes with another number
    with patch.object(dataset_stage, "_join", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        run_preprocess(again)
    assert finished.stat().st_mtime_ns == before
    run_preprocess(again)
    assert [prompt for prompt, _ in documents(tmp_path)] == [shard[0].prompt_token_ids for shard in shards]
