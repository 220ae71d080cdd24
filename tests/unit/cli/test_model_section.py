"""Tests what the model that ``model.path`` names decides in the configuration."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_ssd.artifacts.hub import model_folder
from megatron_ssd.cli.compose import compose_config
from megatron_ssd.errors import UserError
from megatron_ssd.prompts.tokenizer import fast_tokenizer
from tests.helpers.errors import one_line_error
from tests.helpers.fake_hub import refuse_downloads
from tests.helpers.tiny_hf import MODELS, write_hf_config, write_hf_folder, write_tokenizer


@pytest.mark.parametrize("name", MODELS)
def test_a_path_alone_gives_every_shape(name: str, tmp_path: Path) -> None:
    path = write_hf_config(tmp_path / "any name", MODELS[name])
    config = compose_config([f"model.path='{path.removeprefix('model.path=')}'"])
    assert config.model == dataclasses.replace(MODELS[name], name="any_name", path=str(tmp_path / "any name"))
    assert config.run_dir == "runs/any_name"
    assert config.training.seq_length == config.engine.max_model_len == MODELS[name].max_position_embeddings


def test_a_shape_that_agrees_may_be_set_and_another_is_refused_by_its_name(tmp_path: Path) -> None:
    path = write_hf_config(tmp_path / "model", MODELS["llama_scaled"])
    assert compose_config([path, "model.hidden_size=32", "model.rope_scaling.factor=8"]).model is not None
    for override, key in (
        ("model.hidden_size=64", "hidden_size"),
        ("model.rope_scaling=null", "rope_scaling"),
        ("model.rope_scaling.factor=4", "rope_scaling"),
        ("model.model_type=qwen3", "model_type"),
    ):
        with one_line_error(rf"^model\.{key} = .*: {tmp_path}/model/config.json says .*; leave out model.{key}"):
            compose_config([override, path])


def test_the_file_replaces_the_shapes_of_the_yaml_files(tmp_path: Path) -> None:
    path = write_hf_config(tmp_path / "mine", MODELS["llama_scaled"])
    for yaml in ("experiment=demo", "model=tiny_moe"):
        model = compose_config([yaml, path]).model
        assert model is not None
        assert model == dataclasses.replace(MODELS["llama_scaled"], name=model.name, path=str(tmp_path / "mine"))
    scaled = compose_config(["model=llama31_8b", write_hf_config(tmp_path / "other", MODELS["llama_scaled_odd"])]).model
    assert scaled is not None
    assert scaled.rope_scaling == MODELS["llama_scaled_odd"].rope_scaling


def test_sequences_are_as_long_as_the_model_allows_unless_they_are_set(tmp_path: Path) -> None:
    path = write_hf_config(tmp_path, dataclasses.replace(MODELS["mistral_drawn"], sliding_window=64))
    assert compose_config([path]).training.seq_length == 64
    assert compose_config([path, "training.seq_length=48"]).training.seq_length == 48
    with one_line_error(r"training.seq_length = 128: a sliding window is not supported, and the model's has 64 tokens"):
        compose_config([path, "training.seq_length=128"])
    assert compose_config(["model=qwen25_coder_7b"]).training.seq_length == 32768
    assert compose_config(["model=qwen3_4b_instruct"]).training.seq_length == 65536


def test_of_a_hub_id_only_the_config_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def download(path: str, **settings: Any) -> str:
        asked.append((path, settings["revision"], settings["allow_patterns"]))
        write_hf_config(tmp_path / "0123abcd", MODELS["qwen2_drawn"])
        return str(tmp_path / "0123abcd")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = compose_config(["model.path=someone/a-model", "model.revision=main"]).model
    assert model == dataclasses.replace(MODELS["qwen2_drawn"], name="a-model", path="someone/a-model", revision="main")
    assert compose_config(["model=qwen3_8b"]).model is not None  # its shape is complete
    assert asked == [("someone/a-model", "main", "config.json")]


def test_without_a_network_a_hub_id_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refuse_downloads(monkeypatch)
    with one_line_error(r"model.path = someone/model: is not on this machine, .*; .*hf download someone/model"):
        compose_config(["model.path=someone/model"])


def test_weights_of_pytorch_are_refused_with_a_command_that_converts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "it's old", tmp_path / "new"
    write_hf_folder(old, MODELS["qwen2_drawn"], dtype=torch.float16)
    write_tokenizer(old, 32)
    weights = load_file(old / "model.safetensors")
    (old / "model.safetensors").unlink()
    torch.save(weights, old / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has its weights as pytorch_model\.bin, and only safetensors") as error:
        model_folder(str(old))
    command = re.search(r"run (python -c .*) NEW_FOLDER", str(error.value))
    assert command is not None
    _, _, code, path = shlex.split(command[1])
    monkeypatch.setattr("sys.argv", ["-c", path, str(new)])
    exec(code, {})
    assert model_folder(str(new)) == new
    converted = load_file(new / "model.safetensors")
    assert converted.keys() == weights.keys()
    assert all(torch.equal(converted[name], weights[name]) for name in weights)
    assert (new / "tokenizer.json").is_file()


def test_a_sentencepiece_model_is_enough_of_a_tokenizer(tiny_tokenizer: Path, tmp_path: Path) -> None:
    write_hf_config(tmp_path, MODELS["llama"])
    shutil.copyfile(tiny_tokenizer / "tokenizer.model", tmp_path / "tokenizer.model")
    tokenizer = fast_tokenizer(model_folder(str(tmp_path)))
    text = "def add(x):\n    return x + 1\n"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text
