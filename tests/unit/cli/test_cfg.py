"""Tests that ``--cfg all`` lists every key of a script with the value that the script would use."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ssd.cli.compose import CONFIG_DIR, compose_config
from megatron_ssd.config.build import build
from megatron_ssd.config.run import RunConfig
from megatron_ssd.config.tools import ConvertConfig, GradeConfig, InspectConfig

_ROOT = CONFIG_DIR.parent
_OF_A_RUN = [*sorted(path.relative_to(_ROOT) for path in (_ROOT / "launch").glob("*.py")),
             Path("tools/build_minicode.py"), Path("tools/plan.py"), Path("tools/preprocess_data.py")]  # fmt: skip
_OF_A_TOOL = {"grade": GradeConfig, "inspect_dataset": InspectConfig, "convert_checkpoint": ConvertConfig}


def _shown(
    script: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.setattr("sys.argv", [str(script), *arguments])
    runpy.run_path(str(_ROOT / script), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.parametrize("script", _OF_A_RUN, ids=str)
def test_a_script_lists_every_key_with_the_value_its_stage_uses(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    overrides = ["+experiment=demo", f"run_dir={tmp_path}/run", "optimizer.lr=3e-4"]
    values = yaml.safe_load(_shown(script, [*overrides, "--cfg", "all"], monkeypatch, capsys))
    assert set(values) == {field.name for field in dataclasses.fields(RunConfig)}
    assert build(RunConfig, values) == compose_config(overrides)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", _OF_A_RUN, ids=str)
def test_a_script_refuses_an_unknown_key(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        _shown(script, ["experiment=demo", "training.train_iter=3"], monkeypatch, capsys)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: training.train_iter = 3: there is no such key; did you mean training.train_iters?")


def test_keys_of_null_sections_are_comments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = _shown(Path("launch/generate.py"), ["--cfg", "all"], monkeypatch, capsys)
    assert _shown(Path("launch/generate.py"), ["-c", "all"], monkeypatch, capsys) == shown
    assert yaml.safe_load(shown)["proxy"] is None
    for line in ("proxy.path=VALUE, required", "proxy.revision=null", "model.rope_theta=1000000.0",
                 "benchmark.sets={}", "problems.deduplicate=true", "problems.columns.id=null"):  # fmt: skip
        assert f"#   {line}\n" in shown, shown


@pytest.mark.parametrize("name", _OF_A_TOOL)
def test_a_tool_lists_its_own_keys(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config: Any = _OF_A_TOOL[name]
    shown = _shown(Path(f"tools/{name}.py"), ["--cfg", "all"], monkeypatch, capsys)
    values = yaml.safe_load(shown)
    for field in dataclasses.fields(config):
        has_default = field.default is not dataclasses.MISSING
        assert values[field.name] == (_listed(field.default) if has_default else None)
        assert has_default or field.name in shown.partition("Required")[2]


def test_a_tool_shows_the_given_values(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--cfg", "job", "format=lcb", "cpu_seconds=2"]
    assert yaml.safe_load(_shown(Path("tools/grade.py"), arguments, monkeypatch, capsys)) == {
        "format": "lcb", "cpu_seconds": 2,
    }  # fmt: skip


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
