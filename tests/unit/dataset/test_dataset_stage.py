"""The stage as a whole: exact ids, counted reasons, and what a killed run leaves to do."""

import dataclasses
import json
from pathlib import Path

import pytest

from megatron_ssd.artifacts.jsonl import JsonlWriter, read_jsonl
from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.dataset import FilterConfig
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.parallel import ClusterConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.dataset import parts
from megatron_ssd.dataset.indexed import IndexedWriter, open_indexed
from megatron_ssd.dataset.stage import run_preprocess
from megatron_ssd.errors import UserError
from megatron_ssd.schema import FinishReason, Sample

EOS = 2


def sample(number: int, response: str = "a\nb", finish_reason: FinishReason = "stop") -> Sample:
    ids = [10 + number, 11, 12, *([EOS] if finish_reason == "stop" else [])]
    return Sample(problem_id=f"p{number}", sample_index=0, messages=[], prompt_token_ids=[1, 10 + number],
                  response=response, response_token_ids=ids, finish_reason=finish_reason, seed=0, sampling_hash="",
                  model_revision="")  # fmt: skip


SHARDS = [
    [sample(0), sample(1, finish_reason="length"), sample(2, response="")],
    [sample(3, response="pass"), sample(4), sample(5, response="x\ny\nlong")],
]


def publish_samples(run_dir: Path, shards: list[list[Sample]]) -> None:
    stage = Stage(name="samples", run_dir=run_dir, config={}, inputs={})
    work = stage.begin()
    for number, rows in enumerate(shards):
        with JsonlWriter(work / f"shard-{number:05}.jsonl") as writer:
            for row in rows:
                writer.write(row.to_json())
    stage.publish(counts={"samples": sum(map(len, shards))})


def run_config(run_dir: Path, *, vocab_size: int = 64, **filters: object) -> RunConfig:
    model = ModelConfig(name="m", model_type="qwen3", hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                        num_key_value_heads=1, head_dim=8, intermediate_size=8, vocab_size=vocab_size,
                        max_position_embeddings=65536)  # fmt: skip
    return RunConfig(run_dir=str(run_dir), model=model, cluster=ClusterConfig(device="cpu"),
                     precision=PrecisionConfig(transformer_engine=False),
                     filters=FilterConfig(**filters))  # type: ignore[arg-type]  # fmt: skip


def documents(run_dir: Path) -> list[tuple[list[int], list[int]]]:
    dataset = open_indexed(run_dir / "dataset" / "samples")
    return [(dataset[i].tolist(), dataset[i + 1].tolist()) for i in range(0, len(dataset), 2)]


def test_documents_are_the_sampled_ids(tmp_path: Path) -> None:
    publish_samples(tmp_path, SHARDS)
    run_preprocess(run_config(tmp_path))
    kept = [SHARDS[0][0], SHARDS[0][1], SHARDS[1][1], SHARDS[1][2]]
    assert documents(tmp_path) == [(s.prompt_token_ids, s.response_token_ids) for s in kept]
    assert [row["problem_id"] for row in read_jsonl(tmp_path / "dataset" / "ids.jsonl")] == ["p0", "p1", "p4", "p5"]
    assert documents(tmp_path)[1][1][-1] != EOS  # cut at the cap: nothing is added


def test_manifest_counts_and_lineage(tmp_path: Path) -> None:
    publish_samples(tmp_path, SHARDS)
    run_preprocess(run_config(tmp_path))
    manifest = read_manifest(tmp_path / "dataset")
    assert manifest.counts == {
        "samples": 6, "documents": 4, "prompt_tokens": 8, "response_tokens": 15, "length_capped": 1,
    }  # fmt: skip
    assert manifest.dropped == {"empty": 1, "one_line_stub": 1}
    assert manifest.inputs == {"samples": read_manifest(tmp_path / "samples").content_hash}
    assert manifest.engine["name"] == "megatron-core"
    assert {output["path"] for output in manifest.outputs} == {"samples.bin", "samples.idx", "ids.jsonl", "counts.json"}


def test_shortest_fraction_is_taken_over_all_shards(tmp_path: Path) -> None:
    publish_samples(tmp_path, SHARDS)
    run_preprocess(run_config(tmp_path, drop_shortest_fraction=0.5))
    assert [row["problem_id"] for row in read_jsonl(tmp_path / "dataset" / "ids.jsonl")] == ["p4", "p5"]
    assert read_manifest(tmp_path / "dataset").dropped == {"empty": 1, "one_line_stub": 1, "shortest": 2}


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_a_killed_run_goes_on_with_the_unfinished_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fraction: float
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for run_dir in (whole, killed):
        publish_samples(run_dir, SHARDS)
    run_preprocess(run_config(whole, drop_shortest_fraction=fraction))

    added = []
    add = IndexedWriter.add

    def die_in_second_shard(writer: IndexedWriter, *sequences: list[int]) -> None:
        if sequences[0][-1] == 15:
            raise KeyboardInterrupt
        added.append(sequences[0][-1])
        add(writer, *sequences)

    monkeypatch.setattr(IndexedWriter, "add", die_in_second_shard)
    with pytest.raises(KeyboardInterrupt):
        run_preprocess(run_config(killed, drop_shortest_fraction=fraction))
    assert not (killed / "dataset").exists()

    in_first_shard = [number for number in added if number < 13]
    added.clear()
    monkeypatch.setattr(IndexedWriter, "add", lambda writer, *s: (added.append(s[0][-1]), add(writer, *s)))
    run_preprocess(run_config(killed, drop_shortest_fraction=fraction))
    assert not set(added) & set(in_first_shard)
    assert read_manifest(killed / "dataset").outputs == read_manifest(whole / "dataset").outputs


def test_a_run_killed_before_publishing_only_publishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_samples(tmp_path, SHARDS)
    with monkeypatch.context() as patch:
        patch.setattr(Stage, "publish", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_preprocess(run_config(tmp_path))
    monkeypatch.setattr(parts, "iter_samples", lambda shard: pytest.fail("samples were read again"))
    run_preprocess(run_config(tmp_path))
    assert read_manifest(tmp_path / "dataset").counts["documents"] == 4


def test_a_second_run_does_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish_samples(tmp_path, SHARDS)
    run_preprocess(run_config(tmp_path))
    with caplog.at_level("INFO"):
        run_preprocess(run_config(tmp_path))
    assert "dataset: up to date" in caplog.text


def test_broken_line_is_named(tmp_path: Path) -> None:
    publish_samples(tmp_path, SHARDS)
    shard = tmp_path / "samples" / "shard-00001.jsonl"
    lines = shard.read_text().splitlines()
    shard.write_text("\n".join([lines[0], lines[1][:40], lines[2]]) + "\n")
    with pytest.raises(UserError, match=r"shard-00001.jsonl:2"):
        run_preprocess(run_config(tmp_path))
    shard.write_text("\n".join([lines[0], json.dumps({"problem_id": "p"}), lines[2]]) + "\n")
    with pytest.raises(UserError, match=r"shard-00001.jsonl:2.*unknown or missing"):
        run_preprocess(run_config(tmp_path))
    shard.write_text("\n".join(lines) + "\n")
    run_preprocess(run_config(tmp_path))  # the first shard was kept, and the mended one is read
    assert read_manifest(tmp_path / "dataset").counts["samples"] == 6


def test_wrong_vocabulary_missing_samples_and_nothing_left(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run the stage that makes samples/"):
        run_preprocess(run_config(tmp_path))
    publish_samples(tmp_path, SHARDS)
    with pytest.raises(UserError, match=r"token id 12: is outside the vocabulary of model.vocab_size = 12"):
        run_preprocess(run_config(tmp_path, vocab_size=12))
    other = tmp_path / "other"
    publish_samples(other, [[dataclasses.replace(SHARDS[0][0], response="")]])
    with pytest.raises(UserError, match="the filters drop every one of them"):
        run_preprocess(run_config(other))
