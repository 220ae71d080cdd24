"""Shards of samples and manifests that a disk, an editor or another version has spoilt: one line with file and row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.dataset.stage import run_preprocess
from megatron_ssd.errors import UserError
from tests.unit.dataset.test_dataset_stage import documents, publish_samples, run_config, sample

SHARD = "shard-00001.jsonl"


def _row(**changes: Any) -> bytes:
    return json.dumps({**sample(2).to_json(), **changes}).encode() + b"\n"


def _without(field: str) -> bytes:
    return json.dumps({name: value for name, value in sample(2).to_json().items() if name != field}).encode() + b"\n"


# Name -> (second line of the second shard, what the one line says after file and row).
ROWS: dict[str, tuple[bytes, str]] = {
    "torn": (_row()[:60], "must be one JSON object"),
    "torn in the middle": (_row()[:60] + b"\n" + _row(), "must be one JSON object"),
    "blank": (b"\n" + _row(), "must be one JSON object"),
    "NUL bytes": (b"\0" * 40 + b"\n", "must be one JSON object"),
    "UTF-16": (_row().decode().encode("utf-16"), "must be one JSON object"),
    "binary": (bytes(range(128, 200)) + b"\n", "must be one JSON object"),
    "deep nesting": (b"[" * 100_000 + b"\n", "must be one JSON object"),
    "a number of 5,000 digits": (b'{"seed": ' + b"1" * 5000 + b"}\n", "must be one JSON object"),
    "list": (b"[1]\n", "not an object"),
    "null": (b"null\n", "not an object"),
    "text": (b'"text"\n', "not an object"),
    "unknown field": (_row(score=1), r"\['score'\] are unknown or missing"),
    "no ids": (_without("response_token_ids"), r"\['response_token_ids'\] are unknown or missing"),
    "no id of the problem": (_without("problem_id"), r"\['problem_id'\] are unknown or missing"),
    "nothing in it": (b"{}\n", "are unknown or missing"),
    "id negative": (_row(response_token_ids=[5, -1]), "token id -1: is outside the vocabulary"),
    "id at the vocabulary's end": (_row(response_token_ids=[64]), "token id 64: is outside the vocabulary"),
    "id far beyond": (_row(prompt_token_ids=[2**40]), f"token id {2**40}: is outside the vocabulary"),
    "id a fraction": (_row(response_token_ids=[1.5]), "is no sample: expected `int`, got `float`"),
    "id a float": (_row(response_token_ids=[1.0, 2.0]), "is no sample"),
    "id text": (_row(response_token_ids=["7"]), "is no sample: expected `int`, got `str`"),
    "id null": (_row(prompt_token_ids=[None]), "is no sample: expected `int`, got `null`"),
    "id a truth value": (_row(prompt_token_ids=[True]), "is no sample: expected `int`, got `bool`"),
    "id a list": (_row(response_token_ids=[[3]]), "is no sample: expected `int`, got `array`"),
    "id NaN": (_row(response_token_ids=[float("nan")]), "is no sample"),
    "ids null": (_row(response_token_ids=None), "is no sample: expected `array`, got `null`"),
    "ids text": (_row(response_token_ids="abc"), "is no sample: expected `array`, got `str`"),
    "ids an object": (_row(prompt_token_ids={}), "is no sample: expected `array`, got `object`"),
    "response null": (_row(response=None), "is no sample: expected `str`, got `null`"),
    "response a list": (_row(response=["x"]), "is no sample: expected `str`, got `array`"),
    "end of another name": (_row(finish_reason="done"), "is no sample: invalid enum value 'done'"),
    "end null": (_row(finish_reason=None), "is no sample"),
    "problem a number": (_row(problem_id=7), "is no sample: expected `str`, got `int`"),
    "index text": (_row(sample_index="0"), "is no sample: expected `int`, got `str`"),
    "messages of text": (_row(messages="hello"), "is no sample"),
}  # fmt: skip


def _published(run_dir: Path) -> Path:
    publish_samples(run_dir, [[sample(0)], [sample(1), sample(2)]])
    return run_dir / "samples"


def _refused(run_dir: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run_preprocess(run_config(run_dir))
    assert "\n" not in str(caught.value)
    assert not (run_dir / "dataset").exists()


@pytest.mark.parametrize("kind", ROWS)
def test_a_broken_row_is_named(tmp_path: Path, kind: str) -> None:
    line, message = ROWS[kind]
    (_published(tmp_path) / SHARD).write_bytes(json.dumps(sample(1).to_json()).encode() + b"\n" + line)
    _refused(tmp_path, message if message.startswith("token id") else rf"{SHARD}:2.*{message}")


@pytest.mark.parametrize(
    "change",
    [lambda data: b"\xef\xbb\xbf" + data, lambda data: data.replace(b"\n", b"\r\n"), lambda data: data[:-1]],
    ids=["mark of UTF-8", "Windows line ends", "no last line end"],
)
def test_what_means_the_same_is_read_the_same(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    shard = _published(tmp_path) / SHARD
    shard.write_bytes(change(shard.read_bytes()))
    run_preprocess(run_config(tmp_path))
    expected = [(one.prompt_token_ids, one.response_token_ids) for one in (sample(0), sample(1), sample(2))]
    assert documents(tmp_path) == expected


MANIFESTS: dict[str, tuple[bytes | None, str]] = {
    "none": (None, r"has no manifest\.json; run the stage that makes samples/"),
    "empty": (b"", "is no manifest of this version"),
    "cut": (b'{"stage": "samp', "is no manifest of this version"),
    "an empty object": (b"{}", "is no manifest of this version.*'stage'"),
    "a list": (b"[]", "is no manifest of this version"),
    "null": (b"null", "is no manifest of this version"),
    "UTF-16": ("{}".encode("utf-16"), "is no manifest of this version"),
    "deep nesting": (b"[" * 100_000, "is no manifest of this version"),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_broken_manifest_is_named(tmp_path: Path, kind: str) -> None:
    content, message = MANIFESTS[kind]
    manifest = _published(tmp_path) / "manifest.json"
    manifest.unlink()
    if content is not None:
        manifest.write_bytes(content)
    _refused(tmp_path, message)


def test_a_manifest_of_another_version_is_named(tmp_path: Path) -> None:
    manifest = _published(tmp_path) / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "new_field": 1}))
    _refused(tmp_path, r"is no manifest of this version \(.*new_field.*\); remove .*samples and run its stage")
