"""Tests that samples are refused if they are not the ones that were published."""

from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from msgspec.structs import replace

from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.dataset import PreprocessConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.dataset import stage as dataset_stage
from megatron_ssd.dataset.convert import KEYS, Converter
from megatron_ssd.dataset.set_filters import part_file
from megatron_ssd.dataset.stage import run_preprocess
from megatron_ssd.schema import Sample
from tests.helpers.errors import one_line_error
from tests.helpers.samples_run import SHARDS, documents, numbered, publish_samples, run_config

FIRST, SECOND = "shard-00000.jsonl", "shard-00001.jsonl"
MODES: dict[str, dict[str, Any]] = {
    "one process": {"preprocess": PreprocessConfig(num_workers=1)},
    "two processes": {"preprocess": PreprocessConfig(num_workers=2)},
    "a first pass": {"preprocess": PreprocessConfig(num_workers=1), "drop_shortest_fraction": 0.2},
}


def _refused(config: RunConfig, message: str) -> None:
    with one_line_error(message):
        run_preprocess(config)
    gc.collect()  # the error's frames hold the stage and its lock
    assert not (Path(config.run_dir) / "dataset").exists()


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "deleted": (lambda path: path.unlink(), rf"{SECOND}: does not exist, and its manifest lists it with \d+ bytes"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), rf"{SECOND}: does not exist"),
    "a link to nothing": (lambda path: (path.unlink(), path.symlink_to("nothing")), rf"{SECOND}: does not exist"),
    "empty": (lambda path: path.write_bytes(b""), rf"{SECOND}: is empty, and its manifest lists it"),
    "without its last line": (
        lambda path: path.write_bytes(b"".join(_lines(path)[:-1])),
        rf"samples: are 5, and 6 were published; {SECOND} has 2 of them in \d+ bytes, and \d+ bytes were pub",
    ),
    "without its first line": (
        lambda path: path.write_bytes(b"".join(_lines(path)[1:])), rf"are 5, and 6 were published; {SECOND} has 2 of",
    ),
    "one line left": (lambda path: path.write_bytes(_lines(path)[0]), rf"are 4, and 6 were published; {SECOND} has 1"),
    "a changed letter": (
        lambda path: path.write_bytes(path.read_bytes().replace(b'"pass"', b'"past"', 1)),
        rf"{SECOND}: is not what was published: its SHA-256 differs from the manifest's; put it back",
    ),
    "an additional line": (
        lambda path: path.write_bytes(path.read_bytes() + json.dumps(numbered(9).to_json()).encode()),
        rf"are 7, and 6 were published; {SECOND} has 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "mode"),
    [*((change, "one process") for change in CHANGES),
     *itertools.product(("a changed letter", "an additional line"), ("two processes", "a first pass"))],
)  # fmt: skip
def test_a_changed_shard_is_refused_until_it_is_restored(tmp_path: Path, change: str, mode: str) -> None:
    publish_samples(tmp_path, SHARDS)
    shard = tmp_path / "samples" / SECOND
    before = shard.read_bytes()
    apply, message = CHANGES[change]
    apply(shard)
    config = run_config(tmp_path, **MODES[mode])
    _refused(config, message)
    if shard.is_dir():
        shard.rmdir()
    shard.unlink(missing_ok=True)
    shard.write_bytes(before)
    run_preprocess(config)
    assert read_manifest(tmp_path / "dataset").counts["samples"] == 6


REPEATS: dict[str, tuple[list[list[Sample]], str]] = {
    "next to each other": ([[numbered(0), numbered(0)], [numbered(1)]], rf"{FIRST}:2 .*repeats .*{FIRST}:1;"),
    "in another shard": ([[numbered(0), numbered(1)], [numbered(2), numbered(1)]], rf"{SECOND}:2 .*: .*{FIRST}:2;"),
    "an entire shard": ([[numbered(0), numbered(1)], [numbered(0), numbered(1)]], rf"{SECOND}:1 .*: .*{FIRST}:1;"),
    "three times": ([[numbered(0)], [numbered(0)], [numbered(0)]], rf"{SECOND}:1 .*repeats .*{FIRST}:1;"),
    "with another response": (
        [[numbered(0)], [numbered(1), replace(numbered(0), response="b\nc")]], rf"{SECOND}:2 .*{FIRST}:1",
    ),
    "dropped": ([[numbered(0), numbered(0, response="")], [numbered(1)]], rf"{FIRST}:2 .*sample 0 of problem 'p0'"),
    "skipped": (
        [[numbered(0)],
         [replace(numbered(0), response="", response_token_ids=[], finish_reason="skipped")]],
        rf"{SECOND}:1 .*repeats .*{FIRST}:1",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "mode"),
    [*((kind, "one process") for kind in REPEATS),
     *(("with another response", mode) for mode in ("two processes", "a first pass"))],
)  # fmt: skip
def test_a_repeated_sample_is_named_with_both_lines(tmp_path: Path, kind: str, mode: str) -> None:
    shards, message = REPEATS[kind]
    publish_samples(tmp_path, shards)
    _refused(run_config(tmp_path, **MODES[mode]), message)


def test_samples_with_similar_keys_are_not_repeats(tmp_path: Path) -> None:
    names = [("p", 11), ("p1", 1), ("1p", 1), ("p", 1), ("", 1), ("\0p", 1), ("p\0", 1)]
    samples = [replace(numbered(0), problem_id=name, sample_index=index) for name, index in names]
    publish_samples(tmp_path, [samples[:3], samples[3:]])
    run_preprocess(run_config(tmp_path))
    assert len(documents(tmp_path)) == len(names)


def test_samples_that_share_a_digest_by_chance_are_all_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_ssd.dataset.convert.key_digest", lambda problem_id, index: 7)
    publish_samples(tmp_path / "two", [[numbered(0), numbered(1)], [numbered(2)]])
    run_preprocess(run_config(tmp_path / "two"))
    assert len(documents(tmp_path / "two")) == 3


def test_digests_take_eight_bytes_per_sample(tmp_path: Path) -> None:
    publish_samples(tmp_path, SHARDS)
    with patch.object(dataset_stage, "check_complete", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        run_preprocess(run_config(tmp_path))
    keys = np.load(part_file(tmp_path / "dataset.partial" / "parts", Path(FIRST), KEYS))
    assert (keys.dtype, keys.shape) == (np.uint64, (3,))
    run_preprocess(run_config(tmp_path))
    assert not list((tmp_path / "dataset").rglob("*.npy"))


@pytest.mark.parametrize("stage", ["eval", "dataset", "scores", ""])
def test_samples_of_another_stage_are_refused(tmp_path: Path, stage: str) -> None:
    publish_samples(tmp_path, SHARDS)
    manifest = tmp_path / "samples" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "stage": stage}))
    _refused(run_config(tmp_path), rf"manifest.json: was written by the stage '{stage}', and must be from 'samples'")


@pytest.mark.parametrize("name", ["shard-" + "x" * 300 + ".jsonl", "shard-\0.jsonl", "shard-\ud800.jsonl"])
def test_a_shard_with_an_impossible_file_name_is_named(tmp_path: Path, name: str) -> None:
    publish_samples(tmp_path, SHARDS)
    path = tmp_path / "samples" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["outputs"].append({"path": name, "sha256": "0" * 64, "bytes": 1})
    path.write_text(json.dumps(manifest))
    _refused(run_config(tmp_path), r"shard-.*\.jsonl: does not exist")


def test_a_shard_may_be_empty_if_it_was_published_so(tmp_path: Path) -> None:
    publish_samples(tmp_path, [[numbered(0)], [], [numbered(1)]])
    run_preprocess(run_config(tmp_path))
    assert len(documents(tmp_path)) == 2


def test_samples_without_a_count_in_their_manifest_are_refused(tmp_path: Path) -> None:
    publish_samples(tmp_path, SHARDS)
    path = tmp_path / "samples" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "counts": {}}))
    _refused(run_config(tmp_path), "are 6, and their manifest does not count them; remove")


def test_samples_without_a_shard_are_refused(tmp_path: Path) -> None:
    stage = Stage(name="samples", run_dir=tmp_path, config={}, inputs={})
    (stage.begin() / "notes.txt").write_text("nothing")
    stage.publish(counts={"samples": 0})
    _refused(run_config(tmp_path), r"names no shard-\*\.jsonl")


def test_a_shard_that_changed_since_it_was_measured_is_refused(tmp_path: Path) -> None:
    publish_samples(tmp_path, SHARDS)
    config = run_config(tmp_path, drop_shortest_fraction=0.5)
    shard = tmp_path / "samples" / SECOND
    before = shard.read_bytes()
    with patch.object(Converter, "write", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        run_preprocess(config)
    for changed in (_lines(shard)[0], before + json.dumps(numbered(9).to_json()).encode()):
        shard.write_bytes(changed)
        _refused(config, rf"{SECOND}: has changed since an earlier start")
    shard.write_bytes(before)
    run_preprocess(config)
