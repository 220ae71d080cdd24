"""Tests the error messages for incomplete or corrupt model folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.artifacts.hub import open_model
from tests.helpers.errors import one_line_error

CONFIG = {"vocab_size": 512, "max_position_embeddings": 256, "eos_token_id": 7}
NOT_JSON = {
    "empty": b"",
    "cut": b'{"vocab_size": 5',
    "python literal": b"{'vocab_size': 5}",
    "UTF-16": "{}".encode("utf-16"),
    "not UTF-8": b'{"a": "\xff"}',
    "NUL bytes": b"\0" * 64,
    "deep nesting": b"[" * 100_000,
    "mark of UTF-8": b"\xef\xbb\xbf{}",
    "a number of 5,000 digits": b'{"vocab_size": ' + b"1" * 5000 + b"}",
}
NOT_OBJECTS = {
    "list": [], "a config in a list": [{}], "null": None, "number": 7, "text": "config", "truth value": True,
    "NaN": float("nan"), "fraction": 0.5,
}  # fmt: skip
INVALID_SIZES = {
    "text": "512", "null": None, "fraction": 512.5, "a whole number as a float": 512.0, "negative": -1, "zero": 0,
    "truth value": True, "list": [512], "object": {"value": 512}, "NaN": float("nan"), "Infinity": float("inf"),
    "2^31": 2**31, "4,000 digits": 10**4000,
}  # fmt: skip
INVALID_END_IDS = {
    "text": "7", "a word": "</s>", "no ids": [], "negative": -1, "at the vocabulary's end": 512, "2^63": 2**63,
    "truth value": True, "false": False, "object": {"id": 7}, "fraction": 7.0, "NaN": float("nan"),
    "text among ids": [7, "8"], "null among ids": [7, None], "negative among ids": [7, -1],
    "too large among ids": [7, 512], "truth value among ids": [True], "ids in a list": [[7]],
}  # fmt: skip


def _refused(folder: Path, message: str) -> None:
    with one_line_error(message):
        open_model(str(folder))


@pytest.mark.parametrize("kind", NOT_JSON)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_config_that_is_not_json_is_named(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / name).write_bytes(NOT_JSON[kind])
    _refused(tmp_path, rf"{name}: is not JSON.*; copy it from the model again")


@pytest.mark.parametrize("kind", NOT_OBJECTS)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_config_that_is_not_an_object_is_named(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / name).write_text(json.dumps(NOT_OBJECTS[kind]))
    _refused(tmp_path, rf"/{name} with .*: is not a JSON object; copy it from the model again")


@pytest.mark.parametrize("kind", INVALID_SIZES)
@pytest.mark.parametrize("name", ["vocab_size", "max_position_embeddings"])
def test_an_invalid_size_is_named(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, name: INVALID_SIZES[kind]}))
    _refused(tmp_path, rf"/config.json with {name} = .*: must be a whole number from 1 to 2147483647; use the config")


@pytest.mark.parametrize("kind", INVALID_END_IDS)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_an_invalid_end_token_id_is_named(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / name).write_text(json.dumps({**CONFIG, "eos_token_id": INVALID_END_IDS[kind]}))
    _refused(tmp_path, rf"/{name} with eos_token_id = .*: must be a token id, .* from 0 to vocab_size - 1 = 511; give")


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({}, None, (7,)),
        ({}, {}, (7,)),
        ({}, {"eos_token_id": None}, (7,)),
        ({"eos_token_id": None}, {"eos_token_id": [0, 511]}, (0, 511)),
        ({"eos_token_id": -1}, {"eos_token_id": 3}, (3,)),
        ({"eos_token_id": [3, 3]}, None, (3,)),
        ({}, {"eos_token_id": [0, 7]}, (0, 7)),
        ({}, {"eos_token_id": 0}, (0, 7)),
        ({"text_config": {"eos_token_id": "x", "vocab_size": []}}, None, (7,)),
    ],
)
def test_end_token_ids_are_those_of_both_configs(
    tmp_path: Path, config: dict[str, Any], generation: dict[str, Any] | None, expected: tuple[int, ...]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **config}))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    model = open_model(str(tmp_path))
    assert (model.end_token_ids, model.vocab_size, model.max_position_embeddings) == (expected, 512, 256)


def test_a_model_without_end_token_ids_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "eos_token_id": None}))
    _refused(tmp_path, "names no eos_token_id in generation_config.json or config.json")


@pytest.mark.parametrize("missing", CONFIG)
def test_a_missing_value_that_sampling_needs_is_named(tmp_path: Path, missing: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({key: value for key, value in CONFIG.items() if key != missing}))
    _refused(tmp_path, missing)
