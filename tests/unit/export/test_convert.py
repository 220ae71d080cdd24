"""Tests for tools/convert_checkpoint.py, which converts checkpoints in both directions."""

import json
import multiprocessing
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.convert import peak_memory, write_model
from megatron_ssd.cli.compose import values_of_tool
from megatron_ssd.config.build import build
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.tools import ConvertConfig
from megatron_ssd.errors import UserError
from megatron_ssd.export.convert import run_convert
from megatron_ssd.training.checkpoint_folder import check_content, read_facts
from tests.helpers.errors import one_line_error
from tests.helpers.paths import ROOT
from tests.helpers.tiny_hf import MODELS, write_hf_folder, write_tokenizer

DTYPES = {"qwen3": torch.bfloat16, "qwen3_moe": torch.bfloat16, "llama_scaled": torch.float16}


def to_megatron(hf: Path, megatron: Path, **options: Any) -> None:
    run_convert(ConvertConfig(direction="hf_to_megatron", hf=str(hf), megatron=str(megatron), **options))


def to_hf(megatron: Path, hf: Path, **options: Any) -> None:
    run_convert(ConvertConfig(direction="megatron_to_hf", hf=str(hf), megatron=str(megatron), **options))


def load_all(folder: Path) -> dict[str, Tensor]:
    return {key: value for path in sorted(folder.glob("*.safetensors")) for key, value in load_file(path).items()}


def is_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        ours[key].dtype == theirs[key].dtype and ours[key].shape == theirs[key].shape
        # The bits are compared, so that NaN and minus zero count too.
        and torch.equal(ours[key].view(torch.uint8), theirs[key].view(torch.uint8))
        for key in theirs
    )  # fmt: skip


def write_complete_folder(folder: Path, name: str) -> None:
    """Write a folder of several shards with all other files of a published model."""
    write_hf_folder(folder, MODELS[name], dtype=DTYPES.get(name, torch.float32), max_shard_size="4KB")
    write_tokenizer(folder, 32)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "LICENSE").write_text("terms")
    (folder / "README.md").write_text("a model")
    GenerationConfig(do_sample=True, temperature=0.6, top_p=0.95, eos_token_id=[1, 2], pad_token_id=1).save_pretrained(
        folder
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_round_trip_is_exact(name: str, tmp_path: Path) -> None:
    write_complete_folder(tmp_path / "hf", name)
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    to_megatron(tmp_path / "hf", tmp_path / "megatron")
    to_hf(tmp_path / "megatron", tmp_path / "back", max_shard_bytes=30_000)
    assert is_same(load_all(tmp_path / "back"), load_all(tmp_path / "hf"))
    others = {path.name for path in (tmp_path / "hf").iterdir() if "safetensors" not in path.name}
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "LICENSE"} < others
    assert others == {path.name for path in (tmp_path / "back").iterdir() if "safetensors" not in path.name}
    for other in others:
        assert (tmp_path / "back" / other).read_bytes() == (tmp_path / "hf" / other).read_bytes()


def test_transformers_reads_the_result(tmp_path: Path) -> None:
    write_complete_folder(tmp_path / "hf", "qwen3_moe")
    to_megatron(tmp_path / "hf", tmp_path / "megatron")
    to_hf(tmp_path / "megatron", tmp_path / "back", max_shard_bytes=30_000)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("back", "hf"))
    assert ours.config.to_diff_dict() == theirs.config.to_diff_dict()
    assert is_same(ours.state_dict(), theirs.state_dict())


def test_tensors_keep_their_types(tmp_path: Path) -> None:
    """Norms and routers may be fp32. q, k and v share a tensor of the checkpoint, as do gate and up projections."""
    write_hf_folder(tmp_path / "hf", MODELS["qwen3_moe"], dtype=torch.bfloat16)
    path = tmp_path / "hf" / "model.safetensors"
    weights = load_file(path)
    for key in weights:
        if "norm" in key or "mlp.gate.weight" in key:
            weights[key] = weights[key].float() * 1.1
    weights["model.layers.1.self_attn.k_proj.weight"] = torch.randn(32, 32).half()
    weights["model.layers.2.self_attn.v_proj.weight"] = torch.randn(32, 32)
    weights["model.layers.3.mlp.experts.1.up_proj.weight"] = torch.randn(16, 32)
    weights["lm_head.weight"][0, :3] = torch.tensor([float("nan"), float("inf"), -0.0])
    save_file(weights, path, metadata={"format": "pt"})
    to_megatron(tmp_path / "hf", tmp_path / "megatron")
    to_hf(tmp_path / "megatron", tmp_path / "back", verify=True)
    assert is_same(load_all(tmp_path / "back"), weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_copies_of_tied_embeddings_and_rotary_frequencies_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    write_hf_folder(tmp_path / "hf", MODELS["qwen3_odd_tied"], dtype=torch.bfloat16, max_shard_size="20KB")
    path = max((tmp_path / "hf").glob("*.safetensors"))
    more = {"lm_head.weight": load_all(tmp_path / "hf")["model.embed_tokens.weight"].to(dtype),
            "model.layers.2.self_attn.rotary_emb.inv_freq": torch.rand(8)}  # fmt: skip
    save_file({**load_file(path), **more}, path, metadata={"format": "pt"})
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    index["weight_map"] |= dict.fromkeys(more, path.name)
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    to_megatron(tmp_path / "hf", tmp_path / "megatron")
    to_hf(tmp_path / "megatron", tmp_path / "back", verify=True, max_shard_bytes=30_000)
    assert is_same(load_all(tmp_path / "back"), load_all(tmp_path / "hf"))
    written = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    assert written["weight_map"].keys() == index["weight_map"].keys()


def test_an_output_layer_that_differs_from_the_tied_embeddings_is_refused(tmp_path: Path) -> None:
    write_hf_folder(tmp_path / "hf", MODELS["qwen3_tied"])
    path = tmp_path / "hf" / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"] + 1}, path, metadata={"format": "pt"})
    with one_line_error(r"its lm_head.weight differs from model.embed_tokens.weight, so .*; set tie_word_embeddings"):
        to_megatron(tmp_path / "hf", tmp_path / "megatron")


def test_the_checkpoint_has_the_format_of_training(tmp_path: Path) -> None:
    write_hf_folder(tmp_path / "hf", MODELS["qwen3"])
    to_megatron(tmp_path / "hf", tmp_path / "megatron")
    checkpoint = tmp_path / "megatron" / "iter_0000000"
    facts = read_facts(checkpoint)
    assert (facts.iteration, facts.optimizer) == (0, "none")
    assert {".metadata", "__0_0.distcp", "common.pt", "metadata.json"} == facts.files.keys()
    check_content(checkpoint, facts, sorted(facts.files))
    to_hf(checkpoint, tmp_path / "back")  # the folder of the checkpoint itself is accepted too
    assert is_same(load_all(tmp_path / "back"), load_all(tmp_path / "hf"))


def test_peak_memory_is_a_few_times_the_largest_tensor(tmp_path: Path) -> None:
    """The model is 40 times as large as its largest tensor."""
    model = ModelConfig(
        name="large", model_type="qwen3", hidden_size=1024, num_hidden_layers=11, num_attention_heads=8,
        num_key_value_heads=8, head_dim=128, intermediate_size=4096, vocab_size=4096, max_position_embeddings=8,
    )  # fmt: skip
    total, largest = write_model(tmp_path / "hf", model, max_shard_bytes=100_000_000)
    assert total > 40 * largest
    for step in (
        lambda: to_megatron(tmp_path / "hf", tmp_path / "megatron"),
        lambda: to_hf(tmp_path / "megatron", tmp_path / "back"),
    ):
        used = peak_memory(step)
        assert used < 8 * largest, f"{used / 1e6:.0f} MB"


def test_a_killed_conversion_leaves_no_result_and_can_be_repeated(tmp_path: Path) -> None:
    write_hf_folder(tmp_path / "hf", MODELS["qwen3"])

    def convert_and_die() -> None:
        torch.set_num_threads(1)
        kill = mock.Mock(side_effect=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        with mock.patch.object(FileSystemWriter, "finish", kill):
            to_megatron(tmp_path / "hf", tmp_path / "megatron")

    child = multiprocessing.get_context("fork").Process(target=convert_and_die)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert not (tmp_path / "megatron").exists()
    assert (tmp_path / "megatron.partial" / "iter_0000000" / "__0_0.distcp").is_file()
    to_megatron(tmp_path / "hf", tmp_path / "megatron")
    to_hf(tmp_path / "megatron", tmp_path / "back")
    assert is_same(load_all(tmp_path / "back"), load_all(tmp_path / "hf"))
    assert not list(tmp_path.glob("*.partial"))


def test_an_existing_output_is_not_overwritten(tmp_path: Path) -> None:
    write_hf_folder(tmp_path / "hf", MODELS["qwen3"])
    (tmp_path / "megatron").mkdir()  # an empty folder is accepted
    to_megatron(tmp_path / "hf", tmp_path / "megatron")
    with pytest.raises(UserError, match=r"megatron = .*: exists and is not empty; .*replace=true"):
        to_megatron(tmp_path / "hf", tmp_path / "megatron")
    with pytest.raises(UserError, match=r"hf = .*: exists and is not empty"):
        to_hf(tmp_path / "megatron", tmp_path / "hf")
    to_megatron(tmp_path / "hf", tmp_path / "megatron", replace=True)
    assert (tmp_path / "megatron.replaced-1" / "iter_0000000").is_dir()


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_unsupported_folders_are_refused(tmp_path: Path) -> None:
    hf = tmp_path / "hf"
    write_hf_folder(hf, MODELS["qwen3"], max_shard_size="20KB")
    files = sorted(hf.glob("*.safetensors"))

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            to_megatron(hf, tmp_path / "megatron")
        assert not (tmp_path / "megatron").exists()

    with pytest.raises(UserError, match=r"^hf = .*nowhere: does not exist; set hf to a folder or a Hub id"):
        to_megatron(tmp_path / "nowhere", tmp_path / "megatron")
    config = (hf / "config.json").read_bytes()
    for change, match in (
        ({"attention_bias": True}, "attention_bias = True"),
        ({"model_type": "gemma3"}, r"model_type = 'gemma3': supported are llama, mistral, qwen2, qwen3, qwen3_moe"),
        ({"quantization_config": {"bits": 4}}, "quantised weights"),
        ({"vocab_size": 65}, r"2 weight\(s\) misshapen: lm_head.weight has shape \[64, 32\] and .* needs \[65, 32\]"),
        ({"num_hidden_layers": 3}, r"11 weight\(s\) unknown: model.layers.3"),
    ):
        change_config(hf, **change)
        refused(match)
        (hf / "config.json").write_bytes(config)
    complete = files[1].read_bytes()
    files[1].write_bytes(complete[:-8])
    refused(f"{files[1].name}: is not a complete safetensors file")
    files[1].unlink()
    refused(f"{files[1].name}: does not exist")
    files[1].write_bytes(complete)
    index = hf / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["model.layers.9.weight"] = files[1].name
    index.write_text(json.dumps(values))
    refused(r"lacks 1 weight\(s\) that model.safetensors.index.json names: model.layers.9.weight")


def test_unsupported_checkpoints_are_refused(tmp_path: Path) -> None:
    write_hf_folder(tmp_path / "hf", MODELS["qwen3"])
    to_megatron(tmp_path / "hf", tmp_path / "megatron")
    checkpoint = tmp_path / "megatron" / "iter_0000000"

    def refused(match: str, folder: Path = tmp_path / "megatron", **options: Any) -> None:
        with pytest.raises(UserError, match=match):
            to_hf(folder, tmp_path / "back", **options)
        assert not (tmp_path / "back").exists()

    refused(r"has no iter_0000005; choose one of 0", iteration=5)
    refused("has no moving average", weights="ema")
    refused("does not exist", folder=tmp_path / "nowhere")
    refused("has no checkpoint", folder=tmp_path / "hf")
    write_hf_folder(tmp_path / "other", MODELS["qwen3_tied"])
    refused(r"1 weight\(s\) unknown: output_layer.weight", hf_assets=str(tmp_path / "other"))
    write_hf_folder(tmp_path / "moe", MODELS["qwen3_moe"])
    refused(
        r"weight\(s\) missing: decoder.layers.mlp.experts.experts.linear_fc1.weight", hf_assets=str(tmp_path / "moe")
    )
    (tmp_path / "megatron" / "hf").rename(tmp_path / "assets")
    refused(r"has no hf/ with config.json .*; add hf_assets=DIR")
    (tmp_path / "assets").rename(tmp_path / "megatron" / "hf")

    data = checkpoint / "__0_0.distcp"
    content = bytearray(data.read_bytes())
    damaged = content.copy()
    offset = content.index(load_file(tmp_path / "hf" / "model.safetensors")["lm_head.weight"].numpy().tobytes())
    damaged[offset + 100] ^= 1  # flip one bit
    data.write_bytes(damaged)
    refused(r"__0_0.distcp: its data of output_layer.weight differs from what was written")
    data.write_bytes(content[:-5000])
    refused(r"__0_0.distcp has \d+ bytes and \d+ were written")
    data.unlink()
    refused(r"__0_0.distcp is missing")
    data.write_bytes(content)
    metadata = checkpoint / ".metadata"
    intact = metadata.read_bytes()
    metadata.write_bytes(intact[: len(intact) // 2].ljust(len(intact), b"\0"))
    refused(r".metadata: it cannot be read")


def test_the_tool_converts_and_reports_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_tool(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["tools/convert_checkpoint.py", *arguments])
        runpy.run_path(str(ROOT / "tools/convert_checkpoint.py"), run_name="__main__")

    write_hf_folder(tmp_path / "hf", MODELS["llama"])
    arguments = ("direction=hf_to_megatron", f"hf={tmp_path / 'hf'}", f"megatron={tmp_path / 'megatron'}")
    run_tool(*arguments)
    with pytest.raises(SystemExit) as refused:
        run_tool(*arguments)
    assert refused.value.code == 2
    assert f"error: megatron = {tmp_path}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_tool("--help")
    help_text = capsys.readouterr().out
    assert all(key in help_text for key in ("direction", "hf_assets", "max_shard_bytes", "replace"))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["direction=sideways", "hf=a", "megatron=b"], r"direction = 'sideways': .*hf_to_megatron or meg"),
        (["direction=hf_to_megatron", "hf=a"], "megatron is not set"),
        (["direction=hf_to_megatron", "hf=a", "megatrn=b"], r"megatrn = 'b': .*did you mean megatron\?"),
        (["direction=hf_to_megatron", "hf=a", "megatron=b", "iteration=3"], "iteration = 3: belongs to direction=meg"),
        (["direction=megatron_to_hf", "hf=a", "megatron=b", "iteration=x"], "iteration = 'x': .*an integer"),
        (["direction=megatron_to_hf", "hf=a", "megatron=b", "max_shard_bytes=0"], "max_shard_bytes = 0: must be pos"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_refused(arguments: list[str], match: str) -> None:
    with pytest.raises(UserError, match=match):
        build(ConvertConfig, values_of_tool(arguments))
