"""Tests how a model folder or a snapshot of the Hub is opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.artifacts.hub import model_folder, open_model
from megatron_ssd.errors import UserError
from tests.helpers.errors import one_line_error
from tests.helpers.fake_hub import refuse_downloads
from tests.helpers.lfs import LFS_POINTER
from tests.helpers.tiny_hf import write_tokenizer

CONFIG = {"vocab_size": 512, "max_position_embeddings": 256, "eos_token_id": 7}


def model(folder: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.mark.parametrize(
    ("generation", "expected"),
    [(None, (7,)), ({}, (7,)), ({"eos_token_id": 3}, (3, 7)), ({"eos_token_id": [5, 7]}, (5, 7))],
)
def test_end_tokens_are_those_of_both_configs(
    tmp_path: Path, generation: dict[str, Any] | None, expected: tuple[int, ...]
) -> None:
    found = open_model(str(model(tmp_path, CONFIG, generation)))
    assert (found.end_token_ids, found.vocab_size, found.max_position_embeddings) == (expected, 512, 256)


@pytest.mark.parametrize(
    "rename",
    [
        lambda config: config,
        lambda config: {**config, "eos_token": {"content": config["eos_token"], "special": True}},
        lambda config: {key: value for key, value in config.items() if key != "eos_token"},  # in the file of its own
    ],
)
def test_the_tokenizers_end_token_ends_a_response_whatever_the_configs_say(tmp_path: Path, rename: Any) -> None:
    write_tokenizer(tmp_path, 9)  # its end token is 1
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": config["eos_token"]}))
    path.write_text(json.dumps(rename(config)))
    assert open_model(str(model(tmp_path, CONFIG, {"eos_token_id": 0}))).end_token_ids == (0, 7, 1)
    assert open_model(str(model(tmp_path, {**CONFIG, "eos_token_id": None}, {}))).end_token_ids == (1,)


def test_the_revision_is_the_content_hash_unless_given(tmp_path: Path) -> None:
    a, b = model(tmp_path / "a", CONFIG), model(tmp_path / "b", CONFIG)
    before = open_model(str(a)).revision
    assert before == open_model(str(b)).revision
    (a / "model.safetensors").write_bytes(b"weights")
    assert open_model(str(a)).revision != before
    (a / "manifest.json").write_text("{}")  # records how the folder was made; not part of the model
    assert open_model(str(a), "abc").revision == "abc"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, r"model\.path = null"),
        (lambda folder: folder, "has no config.json"),
        (lambda folder: folder / "nothing", "does not exist"),
        (lambda folder: model(folder, {"vocab_size": 1}), "has no 'max_position_embeddings'"),
        (lambda folder: model(folder, {**CONFIG, "eos_token_id": None}), "names no eos_token_id"),
    ],
)
def test_folders_without_a_model_are_refused(tmp_path: Path, make: Any, message: str) -> None:
    path = make(tmp_path)
    with one_line_error(message):
        open_model(None if path is None else str(path))


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json: is not JSON"):
        open_model(str(tmp_path))


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.path = .*nowhere: does not exist"):
        open_model(str(tmp_path / "nowhere"))


def test_an_unreachable_hub_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refuse_downloads(monkeypatch)
    with one_line_error(r"someone/model: .*no route to host"):
        open_model("someone/model")


def test_the_revision_of_a_hub_snapshot_is_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    snapshot = model(tmp_path / "0123abcd", CONFIG)
    (snapshot / "model.safetensors").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda path, **settings: str(snapshot))
    assert open_model("someone/model", "main").revision == "0123abcd"


def test_the_revision_depends_on_what_the_model_computes_alone(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", CONFIG)
    write_tokenizer(folder, 9)
    (folder / "additional_chat_templates").mkdir()
    before = open_model(str(folder)).revision
    for name in (".cache/huggingface/download/model.safetensors.metadata", ".git/HEAD", "README.md", "runs/events",
                 "optimizer.pt", "tokenizer.json.lock", "tokenizer_config.json~",
                 ".model.safetensors.tmp", "manifest.json", "training_args.bin"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("new")
        assert open_model(str(folder)).revision == before, name
    for name in ("model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "merges.txt",
                 "chat_template.jinja", "additional_chat_templates/tools.jinja", "tokenizer.model", "vocab.json",
                 "added_tokens.json", "hf_quant_config.json", "generation_config.json"):  # fmt: skip
        (folder / name).write_text("{}")
        after = open_model(str(folder)).revision
        assert after != before, name
        before = after


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "tokenizer.model", "config.json"])
def test_a_model_that_git_lfs_did_not_download_is_refused(tmp_path: Path, name: str) -> None:
    folder = model(tmp_path / "model", CONFIG)
    (folder / name).write_text(LFS_POINTER)
    for opening in (open_model, model_folder):
        with one_line_error(f"{name}: is a Git LFS pointer"):
            opening(str(folder))


def test_a_user_without_home_folder_is_told_so() -> None:
    with one_line_error("there is no such home folder"):
        open_model("~no-such-user/model")
