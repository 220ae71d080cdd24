"""Tests that every rank of what is shipped can be built from TransformerEngine's layers, and holds the same."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from megatron_ssd.cli.compose import CONFIG_DIR, compose_config, groups
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.planner.dry_run import run_dry
from tests.helpers.built_ranks import check_transformer_engine
from tests.helpers.paths import ROOT

pytest.importorskip("transformer_engine.pytorch", reason="needs TransformerEngine: make test-te")

NAMES = groups()
FP8 = [name for name in NAMES["precision"] if "fp8" in name]


def check(config: RunConfig, precision: PrecisionConfig | None = None) -> None:
    layers = precision or config.precision
    if not layers.transformer_engine:  # a recipe for a CPU
        layers = PrecisionConfig()
    model = dataclasses.replace(needed(config.model, "model"), name="any", path=None, revision=None)  # built once
    check_transformer_engine(model, config.parallel, layers, config.moe)


def experiment(name: str) -> RunConfig:
    # Its model and problems are paths that the user names.
    named = ["model=qwen25_coder_0.5b", "problems.path=none"] if name == "real_coder" else []
    return compose_config([f"experiment={name}", *named])


@pytest.mark.parametrize("name", NAMES["experiment"])
def test_every_rank_of_an_experiment(name: str) -> None:
    check(experiment(name))


@pytest.mark.parametrize("name", NAMES["model"])
def test_every_rank_of_a_model(name: str) -> None:
    check(compose_config([f"model={name}"]))


@pytest.mark.parametrize("name", NAMES["parallel"])
def test_every_rank_of_a_layout(name: str) -> None:
    has_experts = "expert_model_parallel_size" in (CONFIG_DIR / "parallel" / f"{name}.yaml").read_text(encoding="utf-8")
    check(compose_config([f"model={'qwen3_30b' if has_experts else 'qwen3_4b'}", f"parallel={name}"]))


@pytest.mark.parametrize("name", FP8)
def test_every_rank_in_fp8(name: str) -> None:
    check(compose_config(["model=qwen3_30b", f"precision={name}"]))


def test_every_rank_with_sequential_experts() -> None:
    config = compose_config(["experiment=b200_64k"])
    check(dataclasses.replace(config, moe=dataclasses.replace(config.moe, grouped_gemm=False)))


@pytest.mark.parametrize("name", NAMES["experiment"])
def test_a_dry_run_builds_every_rank_from_the_layers_of_the_recipe(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = experiment(name)
    run_dry(config)
    head, layers, *lines = capsys.readouterr().out.splitlines()
    count = config.parallel.world_size
    assert head.split(": ")[1].startswith(f"{count} processes" if count > 1 else "one process")
    assert layers.startswith("layers: TransformerEngine 2.") == config.precision.transformer_engine
    assert len([line for line in lines if line.strip()[:1].isdigit()]) == config.parallel.world_size


@pytest.mark.usefixtures("fresh_interpreters")
def test_the_documented_command() -> None:
    command = [sys.executable, "launch/train.py", "+model=qwen3_30b", "dry_run=true"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "layers: TransformerEngine 2." in done.stdout
    assert "full model, each parameter once: 30,532,122,624" in done.stdout
