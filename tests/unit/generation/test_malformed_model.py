"""Model folders that are incomplete or spoilt: one line that names the file, before an engine starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from megatron_ssd.errors import UserError
from megatron_ssd.generation.model_folder import open_model
from megatron_ssd.prompts.tokenizer import ChatTokenizer

CONFIG = {"vocab_size": 512, "max_position_embeddings": 256, "eos_token_id": 7}
NOT_JSON = {
    "empty": b"",
    "cut": b'{"vocab_size": 5',
    "python literal": b"{'vocab_size': 5}",
    "UTF-16": "{}".encode("utf-16"),
    "no UTF-8": b'{"a": "\xff"}',
    "NUL bytes": b"\0" * 64,
    "deep nesting": b"[" * 100_000,
}


@pytest.mark.parametrize("kind", NOT_JSON)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_config_that_is_no_json_is_named(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / name).write_bytes(NOT_JSON[kind])
    with pytest.raises(UserError, match=rf"{name}: is not JSON.*; copy it from the model again") as caught:
        open_model(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", CONFIG)
def test_a_config_without_a_value_that_sampling_needs_names_it(tmp_path: Path, missing: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({key: value for key, value in CONFIG.items() if key != missing}))
    with pytest.raises(UserError, match=rf"{missing}"):
        open_model(str(tmp_path))


@pytest.mark.parametrize(
    "content", [*NOT_JSON.values(), b"[]", b"null", b"7"], ids=[*NOT_JSON, "list", "null", "number"]
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_spoilt_tokenizer_is_named(tiny_tokenizer: Path, tmp_path: Path, name: str, content: bytes) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_tokenizer, folder)
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=r"model folder .*holds no tokenizer that loads") as caught:
        ChatTokenizer(folder)
    assert "\n" not in str(caught.value)


TEMPLATES = {
    "unclosed": "{{",
    "no such statement": "{% nothing %}",
    "unfinished loop": "{% for message in messages %}",
    "unknown name": "{{ nothing.content }}",
    "no such message": "{{ messages[9].content }}",
    "no such filter": "{{ messages | nothing }}",
    "wrong types": "{{ messages[0].content + 1 }}",
    "division by zero": "{{ 1 / 0 }}",
    "refuses": "{{ raise_exception('not\nthese') }}",
    "no text": 7,
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_broken_chat_template_is_named(tiny_tokenizer: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_tokenizer, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATES[kind]}))
    with pytest.raises(UserError, match=r"chat template of .*refuses messages of") as caught:
        ChatTokenizer(folder).prompt_ids([{"role": "user", "content": "hello"}])
    assert "\n" not in str(caught.value)
