"""Tests that Hydra's own options do what people who know Hydra expect."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from megatron_ssd.cli import entry, multirun
from megatron_ssd.cli.compose import SHIPPED, ConfigSource, compose_config, sweep_values
from megatron_ssd.cli.multirun import points
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.errors import ConfigError
from tests.helpers.paths import ROOT

SCRIPT = ROOT / "launch" / "train.py"
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a script with these arguments; returns what it prints."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", [str(SCRIPT), *arguments])
        entry.main(lambda config: print("started", config.seed), description="What it does.")
        return capsys.readouterr().out

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of YAML files beside those that are shipped."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("defaults: [tiny]\nname: mine\n")
    (tmp_path / "model" / "tiny_moe.yaml").write_text("defaults: [tiny]\nname: replaced\n")
    (tmp_path / "root.yaml").write_text("defaults:\n  - config\n  - override model: tiny\n  - _self_\nseed: 9\n")
    return tmp_path


def test_cfg_prints_the_configuration_or_a_section_of_it(run: Run) -> None:
    given = yaml.safe_load(run("model=tiny", "optimizer.lr=3e-4", "--cfg", "job"))
    assert given["optimizer"] == {"lr": 3e-4}
    assert yaml.safe_load(run("model=tiny", "optimizer.lr=3e-4", "-c", "job", "-p", "optimizer")) == {"lr": 3e-4}
    every = yaml.safe_load(run("-c", "all", "--package", "optimizer", "model=tiny"))
    assert every["weight_decay"] == RunConfig().optimizer.weight_decay


@pytest.mark.parametrize(
    "arguments",
    [("--package", "optimizer"), ("--cfg", "job", "--package", "optimiser"), ("--cfg", "job", "-m", "seed=1,2")],
)
def test_what_cannot_be_printed_is_one_line(
    run: Run, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("model=tiny", *arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("what", "text"),
    [("defaults-tree", "model: tiny"), ("searchpath", "hydra_configs"), ("defaults", "model/tiny"), ("config", "tiny")],
)
def test_info_shows_how_the_configuration_is_composed(what: str, text: str) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "model=tiny", "--info", what], capture_output=True, text=True, check=True
    )
    assert text in done.stdout


def test_a_folder_of_the_user_is_searched_first(folder: Path) -> None:
    assert needed(compose_config(["model=mine"], ConfigSource(folder)).model, "model").name == "mine"
    assert needed(compose_config(["model=tiny_moe"], ConfigSource(folder)).model, "model").name == "replaced"
    assert needed(compose_config(["model=tiny_moe"]).model, "model").name == "tiny_moe"
    assert compose_config([], ConfigSource(folder, "root")).seed == 9


@pytest.mark.parametrize("path", ["{}", "file://{}"])
def test_the_search_path_can_be_extended(folder: Path, path: str) -> None:
    search = f"hydra.searchpath=['{path.format(folder)}']"
    assert needed(compose_config([search, "model=mine"]).model, "model").name == "mine"
    assert needed(compose_config([search, "model=tiny_moe"]).model, "model").name == "tiny_moe"  # searched last


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["hydra.run.dir=x"], "set run_dir for the folder of a run"),
        (["+hydra.job.name=x"], "are not used"),
        (["hydra/launcher=submitit"], "are not used"),
        (["hydra.searchpath=x"], r"is not a list of folders; write it as 'hydra\.searchpath=\["),
        (["seed=1,2"], "add --multirun"),
        (["model=tiny,tiny_moe"], "add --multirun"),
    ],
)
def test_what_is_not_honoured_is_refused(overrides: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        compose_config(overrides)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        compose_config([], ConfigSource(tmp_path / "none"))


def test_the_tab_key_completes_groups_and_keys() -> None:
    def completed(word: str) -> list[str]:
        variables = {**os.environ, "COMP_LINE": f"python launch/train.py {word}", "COMP_POINT": "9"}
        command = [sys.executable, SCRIPT, "-sc", "query=bash"]
        done = subprocess.run(command, capture_output=True, text=True, env=variables, check=True)
        return done.stdout.split()

    assert {"model=qwen3_30b", "model=tiny"} <= set(completed("model="))
    assert "optimizer.lr=" in completed("optimizer.l")
    assert "optimizer.weight_decay=" not in completed("optimizer.l")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=1,2", ["seed=1", "seed=2"]),
        ("+seed=range(3)", ["+seed=0", "+seed=1", "+seed=2"]),
        ("model=tiny,tiny_moe", ["model=tiny", "model=tiny_moe"]),
        ("run_dir='a,b'", None),
        ("evaluation.temperatures=[0.5,1.0]", None),
        ("seed=1", None),
    ],
)
def test_several_values_are_those_of_hydras_grammar(override: str, expected: list[str] | None) -> None:
    assert sweep_values(override) == expected


def test_every_combination_is_a_run_with_a_folder_of_its_own() -> None:
    found = points(["model=tiny", "seed=1,2", "optimizer.lr=1e-5,3e-5", "run_dir='runs/a=b'"], SHIPPED)
    assert [run[:3] for run in found][:2] == [
        ["model=tiny", "seed=1", "optimizer.lr=1e-05"], ["model=tiny", "seed=1", "optimizer.lr=3e-05"],
    ]  # fmt: skip
    folders = [compose_config(run).run_dir for run in found]
    assert folders[0] == "runs/a=b/seed=1,optimizer.lr=1e-05"
    assert len(set(folders)) == 4
    own = points(["model=tiny", "run_dir=runs/x,runs/y"], SHIPPED)
    assert [compose_config(run).run_dir for run in own] == ["runs/x", "runs/y"]
    with pytest.raises(ConfigError, match="no key has several"):
        points(["model=tiny", "seed=1"], SHIPPED)


def test_runs_are_started_one_after_the_other(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    started: list[list[str]] = []

    def start(command: list[str]) -> int:
        started.append(command)
        return 3 if len(started) == 2 else 0

    monkeypatch.setattr(multirun, "run_child", start)
    arguments = [f"--config-dir={folder}", "model=mine", "-m", "seed=1,2,3", "--config-name=config", "run_dir=runs/x"]
    monkeypatch.setattr("sys.argv", ["launch/train.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        entry.main(lambda config: pytest.fail("started in this process"), description="")
    assert stopped.value.code == 3
    assert [command[2:] for command in started] == [
        [f"--config-dir={folder}", "--config-name=config", "model=mine", f"seed={seed}", "run_dir=runs/x",
         f"run_dir='runs/x/seed={seed}'"] for seed in (1, 2)
    ]  # fmt: skip
