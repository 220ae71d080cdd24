"""Tests the error messages for corrupt samples and manifests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.artifacts.samples import iter_samples
from megatron_ssd.config.dataset import PreprocessConfig
from megatron_ssd.dataset.stage import run_preprocess
from megatron_ssd.errors import UserError
from tests.helpers.errors import one_line_error
from tests.helpers.samples_run import numbered, publish_samples, run_config

SHARD = "shard-00001.jsonl"


def _line(**changes: Any) -> bytes:
    return json.dumps({**numbered(2).to_json(), **changes}).encode() + b"\n"


def _without(field: str) -> bytes:
    return json.dumps({name: value for name, value in numbered(2).to_json().items() if name != field}).encode() + b"\n"


# Name -> (second line of the second shard, the message after file and line).
LINES: dict[str, tuple[bytes, str]] = {
    "cut": (_line()[:60], "must be one JSON object"),
    "cut before another line": (_line()[:60] + b"\n" + _line(), "must be one JSON object"),
    "blank": (b"\n" + _line(), "must be one JSON object"),
    "NUL bytes": (b"\0" * 40 + b"\n", "must be one JSON object"),
    "UTF-16": (_line().decode().encode("utf-16"), "must be one JSON object"),
    "binary": (bytes(range(128, 200)) + b"\n", "must be one JSON object"),
    "deep nesting": (b"[" * 100_000 + b"\n", "must be one JSON object"),
    "a number of 5,000 digits": (b'{"seed": ' + b"1" * 5000 + b"}\n", "must be one JSON object"),
    "list": (b"[1]\n", "not an object"),
    "null": (b"null\n", "not an object"),
    "text": (b'"text"\n', "not an object"),
    "unknown field": (_line(score=1), "unknown field `score`"),
    "no ids": (_without("response_token_ids"), "missing required field `response_token_ids`"),
    "no id of the problem": (_without("problem_id"), "missing required field `problem_id`"),
    "empty object": (b"{}\n", "missing required field"),
    "deep nesting of a field": (b'{"messages": ' + b"[" * 100_000 + b"\n", "must be one JSON object"),
    "deep nesting of an unknown field": (b'{"x": ' + b'{"a":' * 100_000 + b"\n", "must be one JSON object"),
    "id negative": (_line(response_token_ids=[5, -1]), "token id -1: is outside the vocabulary"),
    "id at the vocabulary's end": (_line(response_token_ids=[64]), "token id 64: is outside the vocabulary"),
    "id far too large": (_line(prompt_token_ids=[2**40]), f"token id {2**40}: is outside"),
    **{
        f"id {name}": (_line(response_token_ids=[3, id_]), rf"token id {id_}: is outside the vocabulary of model\.")
        for name, id_ in {"2^31": 2**31, "2^63": 2**63, "2^64 - 1": 2**64 - 1, "2^64": 2**64, "10^30": 10**30,
                          "-2^63": -(2**63), "-2^63 - 1": -(2**63) - 1}.items()
    },
    "id of 4,000 digits": (_line(prompt_token_ids=[10**4000]), r"token id 1000000.*\.\.\..*0000: is outside"),
    "id of 5,000 digits": (_line().replace(b"[1, 12]", b"[" + b"1" * 5000 + b"]"), "must be one JSON object"),
    "id too large in a dropped sample": (_line(response="", response_token_ids=[99]), "token id 99: is outside"),
    "id too large and a surrogate": (_line(response="cut \ud83d\nx", response_token_ids=[99]), "token id 99: is out"),
    "id Infinity": (_line(response_token_ids=[float("inf")]), "is not a sample"),
    "no prompt": (_line(prompt_token_ids=[]), "is not a sample: prompt_token_ids is empty"),
    "no response": (_line(response_token_ids=[]), "is not a sample: response_token_ids is empty"),
    "no response, cut": (_line(response_token_ids=[], finish_reason="length"), "is not a sample: response_token_ids"),
    "skip with ids": (_line(finish_reason="skipped", response=""), "it was skipped but has a response"),
    "skip with text": (_line(finish_reason="skipped", response_token_ids=[]), "it was skipped but has a"),
    "skip reason without a skip": (_line(skip_reason="too long"), "it has a skip_reason and its finish_reason"),
    "index negative": (_line(sample_index=-1), "is not a sample: expected `int` >= 0 - at `\\$.sample_index`"),
    "index a fraction": (_line(sample_index=0.5), "is not a sample: expected `int`, got `float`"),
    "index a truth value": (_line(sample_index=True), "is not a sample: expected `int`, got `bool`"),
    "index null": (_line(sample_index=None), "is not a sample: expected `int`, got `null`"),
    "index NaN": (_line(sample_index=float("nan")), "is not a sample"),
    "seed text": (_line(seed="7"), "is not a sample: expected `int`, got `str`"),
    "message without content": (_line(messages=[{"role": "user"}]), "a message has no role or no content"),
    "message null": (_line(messages=[None]), "is not a sample: expected `object`, got `null`"),
    "message's content null": (_line(messages=[{"role": "user", "content": None}]), "is not a sample: expected `str`"),
    "id a fraction": (_line(response_token_ids=[1.5]), "is not a sample: expected `int`, got `float`"),
    "id a float": (_line(response_token_ids=[1.0, 2.0]), "is not a sample"),
    "id text": (_line(response_token_ids=["7"]), "is not a sample: expected `int`, got `str`"),
    "id null": (_line(prompt_token_ids=[None]), "is not a sample: expected `int`, got `null`"),
    "id a truth value": (_line(prompt_token_ids=[True]), "is not a sample: expected `int`, got `bool`"),
    "id a list": (_line(response_token_ids=[[3]]), "is not a sample: expected `int`, got `array`"),
    "id NaN": (_line(response_token_ids=[float("nan")]), "is not a sample"),
    "ids null": (_line(response_token_ids=None), "is not a sample: expected `array`, got `null`"),
    "ids text": (_line(response_token_ids="abc"), "is not a sample: expected `array`, got `str`"),
    "ids an object": (_line(prompt_token_ids={}), "is not a sample: expected `array`, got `object`"),
    "response null": (_line(response=None), "is not a sample: expected `str`, got `null`"),
    "response a list": (_line(response=["x"]), "is not a sample: expected `str`, got `array`"),
    "unknown finish reason": (_line(finish_reason="done"), "is not a sample: invalid enum value 'done'"),
    "finish reason null": (_line(finish_reason=None), "is not a sample"),
    "problem a number": (_line(problem_id=7), "is not a sample: expected `str`, got `int`"),
    "index text": (_line(sample_index="0"), "is not a sample: expected `int`, got `str`"),
    "messages of text": (_line(messages="hello"), "is not a sample"),
}  # fmt: skip


def _published(run_dir: Path) -> Path:
    publish_samples(run_dir, [[numbered(0)], [numbered(1), numbered(2)]])
    return run_dir / "samples"


def _refused(run_dir: Path, message: str) -> None:
    with one_line_error(message):
        run_preprocess(run_config(run_dir))
    assert not (run_dir / "dataset").exists()


@pytest.mark.parametrize("kind", LINES)
def test_a_broken_line_is_named(tmp_path: Path, kind: str) -> None:
    line, message = LINES[kind]
    (tmp_path / SHARD).write_bytes(json.dumps(numbered(1).to_json()).encode() + b"\n" + line)
    with one_line_error(rf"{SHARD}:2.*{message}"):
        list(iter_samples(tmp_path / SHARD, vocab_size=64))


@pytest.mark.parametrize("kind", ["id 2^63", "skip with ids"])
@pytest.mark.parametrize(
    ("num_workers", "filters"),
    [(1, {}), (2, {}), (1, {"drop_duplicates": True, "drop_loops": True}), (2, {"drop_shortest_fraction": 0.5})],
)
def test_the_stage_names_a_broken_line_in_every_mode(
    tmp_path: Path, kind: str, num_workers: int, filters: dict[str, Any]
) -> None:
    line, message = LINES[kind]
    (_published(tmp_path) / SHARD).write_bytes(json.dumps(numbered(1).to_json()).encode() + b"\n" + line)
    config = run_config(tmp_path, preprocess=PreprocessConfig(num_workers=num_workers), **filters)
    with pytest.raises(UserError, match=rf"{SHARD}:2.*{message}"):
        run_preprocess(config)


@pytest.mark.parametrize(
    "change",
    [lambda data: b"\xef\xbb\xbf" + data, lambda data: data.replace(b"\n", b"\r\n"), lambda data: data[:-1]],
    ids=["mark of UTF-8", "Windows line ends", "no last line end"],
)
def test_a_shard_with_the_same_samples_in_other_bytes_is_refused(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    shard = _published(tmp_path) / SHARD
    shard.write_bytes(change(shard.read_bytes()))
    assert list(iter_samples(shard)) == [numbered(1), numbered(2)]
    _refused(tmp_path, rf"{SHARD}: is not what was published: its SHA-256 differs")


MANIFESTS: dict[str, tuple[bytes | None, str]] = {
    "none": (None, r"has no manifest\.json; run launch/generate\.py"),
    "empty": (b"", "is not a manifest of this version"),
    "cut": (b'{"stage": "samp', "is not a manifest of this version"),
    "an empty object": (b"{}", "is not a manifest of this version.*'stage'"),
    "a list": (b"[]", "is not a manifest of this version"),
    "null": (b"null", "is not a manifest of this version"),
    "UTF-16": ("{}".encode("utf-16"), "is not a manifest of this version"),
    "deep nesting": (b"[" * 100_000, "is not a manifest of this version"),
    "mark of UTF-8": (b"\xef\xbb\xbf{}", "is not a manifest of this version"),
    "a number": (b"7", "is not a manifest of this version"),
    "a number of 5,000 digits": (b"1" * 5000, "is not a manifest of this version"),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_broken_manifest_is_named(tmp_path: Path, kind: str) -> None:
    content, message = MANIFESTS[kind]
    manifest = _published(tmp_path) / "manifest.json"
    manifest.unlink()
    if content is not None:
        manifest.write_bytes(content)
    _refused(tmp_path, message)


def _output(**changes: Any) -> dict[str, Any]:
    return {"path": "shard-00000.jsonl", "sha256": "0" * 64, "bytes": 1, **changes}


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "a field of another version": ({"new_field": 1}, "new_field"),
    "outputs null": ({"outputs": None}, r"Expected `array`, got `null` - at `\$.outputs`"),
    "outputs names": ({"outputs": ["shard-00000.jsonl"]}, r"Expected `object`, got `str` - at `\$.outputs\[0\]`"),
    "outputs an object": ({"outputs": _output()}, "Expected `array`, got `object`"),
    "outputs text": ({"outputs": "shard-00000.jsonl"}, "Expected `array`, got `str`"),
    "an output null": ({"outputs": [None]}, "Expected `object`, got `null`"),
    "an output without path": ({"outputs": [{"sha256": "0", "bytes": 1}]}, "missing required field `path`"),
    "an output without size": ({"outputs": [{"path": "a", "sha256": "0"}]}, "missing required field `bytes`"),
    "a path that is a number": ({"outputs": [_output(path=7)]}, "Expected `str`, got `int`"),
    "a path null": ({"outputs": [_output(path=None)]}, "Expected `str`, got `null`"),
    "a path from the root": ({"outputs": [_output(path="/shard-0.jsonl")]}, "'/shard-0.jsonl' is not below the folder"),
    "a path upwards": ({"outputs": [_output(path="../shard-0.jsonl")]}, "is not below the folder"),
    "a path twice": ({"outputs": [_output(), _output()]}, "'shard-00000.jsonl' is repeated"),
    "a negative size": ({"outputs": [_output(bytes=-1)]}, "Expected `int` >= 0"),
    "a size of text": ({"outputs": [_output(bytes="1")]}, "Expected `int`, got `str`"),
    "a hash that is a number": ({"outputs": [_output(sha256=0)]}, "Expected `str`, got `int`"),
    "counts a list": ({"counts": [6]}, "Expected `object`, got `array`"),
    "counts null": ({"counts": None}, "Expected `object`, got `null`"),
    "counts of text": ({"counts": {"samples": "3"}}, "Expected `int`, got `str`"),
    "counts NaN": ({"counts": {"samples": float("nan")}}, "Expected `int`, got `float`"),
    "counts a truth value": ({"counts": {"samples": True}}, "Expected `int`, got `bool`"),
    "facts a list": ({"facts": []}, "Expected `object`, got `array`"),
    "inputs null": ({"inputs": None}, "Expected `object`, got `null`"),
    "stage null": ({"stage": None}, "Expected `str`, got `null`"),
    "identity a number": ({"identity": 7}, "Expected `str`, got `int`"),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_a_manifest_with_a_broken_field_is_named(tmp_path: Path, kind: str) -> None:
    changes, message = FIELDS[kind]
    manifest = _published(tmp_path) / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))
    _refused(tmp_path, rf"is not a manifest of this version \(.*{message}.*\); remove .*samples and run its stage")


def test_a_manifest_that_names_a_key_twice_is_refused(tmp_path: Path) -> None:
    manifest = _published(tmp_path) / "manifest.json"
    manifest.write_text(
        manifest.read_text().replace('"counts": {', '"counts": {"samples": 1, "samples": 3}, "counts": {')
    )
    _refused(tmp_path, "is not a manifest of this version .the key .samples. is repeated.")
