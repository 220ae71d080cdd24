"""Tests for the export of a Megatron-Core checkpoint to a Hugging Face folder."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing
from safetensors.torch import load_file
from transformers import GenerationConfig

from megatron_ssd.artifacts.hub import open_model
from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.cluster import ClusterConfig
from megatron_ssd.config.generation import SamplingConfig, SamplingParams
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.config.training import ExportConfig
from megatron_ssd.errors import UserError
from megatron_ssd.export import shards, state_dict_adapter, verify
from megatron_ssd.export.assets import set_dtype
from megatron_ssd.export.export import run_export
from megatron_ssd.export.stage import export_stage
from megatron_ssd.models.build import build_model
from megatron_ssd.models.hf_checkpoint import load_hf_weights
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import process_groups
from megatron_ssd.training.step import EmaWeights
from tests.helpers.tiny_hf import MODELS, write_hf_folder, write_tokenizer

CPU = ClusterConfig(device="cpu")


def publish_checkpoint(run_dir: Path, model: ModelConfig, base: Path, *, params_dtype: str) -> None:
    """Publish ``run_dir/checkpoints``, whose first checkpoint has the weights of ``base``."""
    stage = Stage(name="checkpoints", run_dir=run_dir, config={}, inputs={})
    work = stage.begin()
    precision = PrecisionConfig(params_dtype=params_dtype, transformer_engine=False)  # type: ignore[arg-type]
    with process_groups(ParallelConfig(), device=prepare_device(CPU)):
        (chunk,) = build_model(model, ParallelConfig(), precision, device="cpu", seed=None)
        load_hf_weights([chunk], model, ParallelConfig(), base)
        ema = EmaWeights([chunk], decay=0.9)  # a copy of the weights, which is never updated here
        for name in ("iter_0000002", "iter_0000010"):
            (work / name).mkdir()
            models = {"model0": chunk.sharded_state_dict()}
            state = {**models, "optimizer": {"param_groups": [{"step": 2}]}}
            if name == "iter_0000010":
                state["ema"] = ema.sharded_state_dict(models)
            dist_checkpointing.save(state, str(work / name), content_metadata={"kind": "any"})
            with torch.no_grad():
                chunk.decoder.final_layernorm.weight.fill_(2.0)  # so that the two checkpoints differ
    stage.publish()


def run_config(run_dir: Path, model: ModelConfig, *, params_dtype: str = "fp32", **changes: object) -> RunConfig:
    precision = PrecisionConfig(params_dtype=params_dtype, transformer_engine=False)  # type: ignore[arg-type]
    config = RunConfig(run_dir=str(run_dir), model=model, cluster=CPU, precision=precision,
                       training=dataclasses.replace(RunConfig(precision=precision, cluster=CPU).training,
                                                    seq_length=64))  # fmt: skip
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Makes a folder with a base model and a run trained from it, once per model and type. Tests only read it."""

    @functools.cache
    def make(name: str, params_dtype: str) -> Path:
        root = tmp_path_factory.mktemp(f"{name}-{params_dtype}")
        dtype = torch.bfloat16 if params_dtype == "bf16" else torch.float32
        model = write_hf_folder(root / "base", MODELS[name], dtype=dtype)
        write_tokenizer(root / "base", 32)
        (root / "base" / "LICENSE").write_text("terms")
        publish_checkpoint(root / "run", model, root / "base", params_dtype=params_dtype)
        return root

    return make


@pytest.fixture
def make_run(trained: Callable[[str, str], Path], tmp_path: Path) -> Callable[..., RunConfig]:
    """Makes a trained run of one of the tiny models, which is ready to be exported."""

    def make(name: str, params_dtype: str = "fp32") -> RunConfig:
        shutil.copytree(trained(name, params_dtype), tmp_path, dirs_exist_ok=True)
        model = dataclasses.replace(MODELS[name], path=str(tmp_path / "base"))
        return run_config(tmp_path / "run", model, params_dtype=params_dtype)

    return make


@pytest.fixture
def no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the comparison of logits, which starts a subprocess."""
    monkeypatch.setattr(verify, "MAX_PARAMETERS", 0)


@pytest.mark.parametrize(("name", "params_dtype"), [("qwen3_tied", "bf16"), ("qwen3_moe", "fp32")])
def test_a_fine_tuned_model_is_exported(make_run: Callable[..., RunConfig], name: str, params_dtype: str) -> None:
    config = make_run(name, params_dtype)
    run_export(config)
    assert config.model is not None
    assert config.model.path is not None
    base, export = Path(config.model.path), Path(config.run_dir) / "export"
    expected = load_file(base / "model.safetensors")
    expected["model.norm.weight"] = torch.full_like(expected["model.norm.weight"], 2.0)
    found = load_file(export / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) and found[key].dtype == expected[key].dtype for key in expected)
    assert json.loads((export / "config.json").read_text()) == json.loads((base / "config.json").read_text())
    for copied in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE"):
        assert (export / copied).read_bytes() == (base / copied).read_bytes()
    manifest = read_manifest(export)
    assert manifest.counts == {"weights": len(found), "parameters": config.model.num_parameters(), "shards": 1}
    assert manifest.facts["iteration"] == 10
    assert manifest.facts["max_logit_difference"] < 5e-6
    assert manifest.engine["name"] == "megatron-core"
    assert manifest.inputs["checkpoints"] == read_manifest(Path(config.run_dir) / "checkpoints").content_hash


@pytest.mark.usefixtures("no_logits")
@pytest.mark.parametrize("greedy", [False, True])
def test_an_export_has_the_configured_decode_settings_and_a_card(
    make_run: Callable[..., RunConfig], greedy: bool
) -> None:
    evaluated = SamplingParams(temperature=0.0 if greedy else 1.1, top_k=-1 if greedy else 20, top_p=0.8)
    sampling = SamplingConfig(train=SamplingParams(), eval=evaluated, stop_token_ids=(7, 1))
    config = dataclasses.replace(make_run("qwen3"), sampling=sampling)
    assert config.model is not None
    base, export = Path(str(config.model.path)), Path(config.run_dir) / "export"
    (base / "generation_config.json").write_text(json.dumps({
        "_from_model_config": True, "eos_token_id": 5, "temperature": 0.6, "max_length": 90,
    }))  # fmt: skip
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\nThe base.")
    run_export(config)
    read = GenerationConfig.from_pretrained(export)
    assert (read.do_sample, read.temperature, read.top_k, read.top_p) == (
        not greedy, evaluated.temperature, 0 if greedy else 20, 0.8
    )  # fmt: skip
    assert (read.repetition_penalty, read.max_length) == (1.0, 90)
    assert read.eos_token_id == [5, 1, 7]
    assert not read._from_model_config
    assert open_model(str(export)).end_token_ids == (5, 1, 7)
    card = (export / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "iteration = 10" in card
    assert str(base.parent) not in card
    assert export_stage(config).is_current()
    hotter = dataclasses.replace(sampling, eval=SamplingParams(temperature=1.5))
    with pytest.raises(UserError, match=r"export: was made with another configuration \(decode\.temperature"):
        export_stage(dataclasses.replace(config, sampling=hotter)).is_current()


@pytest.mark.usefixtures("no_logits")
@pytest.mark.parametrize("chosen", [ExportConfig(iteration=2), ExportConfig(weights="ema")])
def test_an_older_checkpoint_or_the_ema_is_exported(make_run: Callable[..., RunConfig], chosen: ExportConfig) -> None:
    config = dataclasses.replace(make_run("qwen3", "bf16"), export=chosen)
    run_export(config)
    assert config.model is not None
    expected = load_file(Path(str(config.model.path)) / "model.safetensors")  # without iteration 10
    found = load_file(Path(config.run_dir) / "export" / "model.safetensors")
    assert all(torch.equal(found[key], expected[key]) and found[key].dtype == expected[key].dtype for key in expected)
    facts = read_manifest(Path(config.run_dir) / "export").facts
    assert (facts["iteration"], facts["weights"]) == (chosen.iteration or 10, chosen.weights)


def test_a_missing_checkpoint_or_ema_is_an_error(make_run: Callable[..., RunConfig]) -> None:
    config = make_run("qwen3")
    with pytest.raises(UserError, match=r"iteration = 3: .* has no iter_0000003; choose one of 2, 10"):
        run_export(dataclasses.replace(config, export=ExportConfig(iteration=3)))
    with pytest.raises(UserError, match=r"iter_0000002: has no moving average of the weights"):
        run_export(dataclasses.replace(config, export=ExportConfig(iteration=2, weights="ema")))


@pytest.mark.usefixtures("no_logits")
def test_a_model_trained_from_random_weights_is_exported(make_run: Callable[..., RunConfig]) -> None:
    config = make_run("llama")
    assert config.model is not None
    config = dataclasses.replace(config, objective="pretrain", model=dataclasses.replace(config.model, path=None))
    run_dir = Path(config.run_dir)
    with pytest.raises(UserError, match="has no tokenizer files"):
        run_export(config)
    write_tokenizer(run_dir / "tokenizer", 65)
    with pytest.raises(UserError, match=r"wrong vocabulary size: the tokenizer in .* has 65 entries"):
        run_export(config)
    write_tokenizer(run_dir / "tokenizer", 64)
    run_export(dataclasses.replace(config, replace=True))
    values = json.loads((run_dir / "export" / "config.json").read_text())
    assert (values["vocab_size"], values["eos_token_id"], values["torch_dtype"]) == (64, 1, "float32")
    generation = json.loads((run_dir / "export" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}


@pytest.mark.usefixtures("no_logits")
def test_continued_pretraining_copies_assets_from_its_base(make_run: Callable[..., RunConfig]) -> None:
    config = dataclasses.replace(make_run("llama"), objective="pretrain")
    run_export(config)
    assert config.model is not None
    base, export = Path(str(config.model.path)), Path(config.run_dir) / "export"
    for copied in ("config.json", "tokenizer.json", "LICENSE"):
        assert (export / copied).read_bytes() == (base / copied).read_bytes()


@pytest.mark.usefixtures("no_logits")
def test_a_killed_export_keeps_its_complete_files(
    make_run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(make_run("qwen3"), export=ExportConfig(max_shard_bytes=30_000))
    work = Path(config.run_dir) / "export.partial"
    write, written = shards.write_shard, []

    def die_at_third(folder: Path, shard: shards.Shard, value_of: Callable[[str], torch.Tensor]) -> None:
        if len(written) == 2:
            (folder / f"{shard.file_name}.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        write(folder, shard, value_of)
        written.append(shard.file_name)

    monkeypatch.setattr(state_dict_adapter, "write_shard", die_at_third)
    with pytest.raises(KeyboardInterrupt):
        run_export(config)
    before = {name: (work / name).stat().st_mtime_ns for name in written}
    assert not work.with_name("export").exists()

    def record_and_write(folder: Path, shard: shards.Shard, value_of: Callable[[str], torch.Tensor]) -> None:
        written.append(shard.file_name)
        write(folder, shard, value_of)

    monkeypatch.setattr(state_dict_adapter, "write_shard", record_and_write)
    run_export(config)
    export = work.with_name("export")
    assert len(written) == len(set(written)) == read_manifest(export).counts["shards"] > 2
    assert {name: (export / name).stat().st_mtime_ns for name in before} == before
    assert not list(export.glob("*.tmp"))


def test_a_folder_with_different_logits_is_refused(
    make_run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_run("qwen3")
    exact = verify._megatron_logits
    seen = []

    def megatron_logits(*args: Any, **kwargs: Any) -> Any:
        seen.append(exact(*args, **kwargs))
        return seen[0]

    monkeypatch.setattr(verify, "_megatron_logits", megatron_logits)
    monkeypatch.setattr(verify, "_transformers_logits", lambda *_: seen[0] * 1.001)
    with pytest.raises(UserError, match="its logits differ from the trained model's by"):
        run_export(config)
    assert not (Path(config.run_dir) / "export").exists()


def test_large_models_are_exported_without_comparing_logits(
    make_run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_run("qwen3")
    monkeypatch.setattr(verify, "MAX_PARAMETERS", 1000)
    with caplog.at_level("INFO"):
        run_export(config)
    assert "logits not compared" in caplog.text
    assert read_manifest(Path(config.run_dir) / "export").facts == {
        "iteration": 10, "weights": "model", "tokens_compared": 0,
    }  # fmt: skip


def test_a_wrong_model_or_a_missing_stage_is_an_error(make_run: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = make_run("qwen3")
    assert config.model is not None
    smaller = dataclasses.replace(config.model, vocab_size=60)
    with pytest.raises(UserError, match=r"model.vocab_size = 60: .*config.json says 64"):
        run_export(dataclasses.replace(config, model=smaller))
    longer = dataclasses.replace(config.model, num_hidden_layers=5)
    base_config = Path(str(config.model.path)) / "config.json"
    base_config.write_text(json.dumps(json.loads(base_config.read_text()) | {"num_hidden_layers": 5}))
    with pytest.raises(UserError, match=r"has shape \[4, 32\] and the model needs \[5, 32\]"):
        run_export(dataclasses.replace(config, model=longer, replace=True))
    with pytest.raises(UserError, match=r"model.path = .*none: "):
        run_export(dataclasses.replace(config, model=dataclasses.replace(config.model, path=str(tmp_path / "none"))))
    with pytest.raises(UserError, match=r"run launch/train\.py"):
        run_export(dataclasses.replace(config, run_dir=str(tmp_path / "empty")))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"dtype": "float32", "torch_dtype": "float32"}, {"dtype": "bfloat16", "torch_dtype": "bfloat16"}),
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        ({"torch_dtype": "float32"}, {"torch_dtype": "bfloat16"}),
        ({}, {"torch_dtype": "bfloat16"}),
    ],
)
def test_the_type_is_set_under_every_name(before: dict[str, str], after: dict[str, str]) -> None:
    set_dtype(before, "bfloat16")
    assert before == after
