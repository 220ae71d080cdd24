"""Tests what the pipeline passes on to its stages: environment variables and overrides."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.cli import entry, pipeline
from megatron_ssd.cli.compose import SHIPPED, text_override
from megatron_ssd.cli.pipeline import _run_all
from megatron_ssd.cli.stages import Script
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.process import DIE_WITH_PARENT, REPORT_FOLLOWS, run_child
from tests.helpers.tiny_hf import MODELS, write_hf_config

WRITES_ENVIRONMENT = f"""
import os, pathlib, sys
pathlib.Path(sys.argv[0]).with_suffix(".txt").write_text(
    "".join(str(int(bool(os.environ.get(name)))) for name in ({DIE_WITH_PARENT!r}, {REPORT_FOLLOWS!r}))
)
"""


@pytest.mark.parametrize(("follows", "seen"), [(True, "11"), (False, "10")])
def test_stages_know_whether_the_report_follows(tmp_path: Path, follows: bool, seen: str) -> None:
    script = tmp_path / "stage.py"
    script.write_text(WRITES_ENVIRONMENT)
    stage = Script(
        "made_up",
        str(script),
        "make something up",
        lambda _: Stage(name="made_up", run_dir=tmp_path, config={}, inputs={}),
    )
    overrides = ["+experiment=demo", f"run_dir={tmp_path}"]
    assert _run_all("stage", [stage], overrides, SHIPPED, total=1, report_follows=follows) == [stage]
    assert script.with_suffix(".txt").read_text() == seen


def test_a_nested_pipeline_sets_its_own_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "stage.py"
    script.write_text(WRITES_ENVIRONMENT)
    monkeypatch.setenv(REPORT_FOLLOWS, "1")
    assert run_child([sys.executable, str(script)]) == 0
    assert script.with_suffix(".txt").read_text() == "10"


@pytest.mark.parametrize("name", ["a=b", "a,b", "run (1)", "[1]", "{a}", "it's", "\u00eb", "a\\", "${x}"])
def test_a_stage_gets_the_run_dir_of_the_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(entry, "start_logging", lambda: None)
    monkeypatch.setattr(pipeline, "check_machine", lambda config: None)
    monkeypatch.setattr(pipeline, "run_child", lambda command, *, report_follows: started.append(command) or 0)
    path = write_hf_config(tmp_path, MODELS["qwen3"])
    overrides = ["experiment=demo", path, text_override("run_dir", str(tmp_path / name))]
    monkeypatch.setattr("sys.argv", ["pipeline.py", *overrides, "--until=problems"])
    pipeline.main()
    _, script, *arguments = started[0]
    assert script.endswith("launch/problems.py")
    seen = []
    monkeypatch.setattr("sys.argv", [script, *arguments])
    entry.main(seen.append, description="")
    assert [config.run_dir for config in seen] == [str(tmp_path / name)]


@pytest.mark.parametrize("chosen", [["problems=minicode"], ["experiment=demo"]], ids=["alone", "with a base"])
def test_problems_alone_need_no_other_section_and_make_no_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: list[str]
) -> None:
    monkeypatch.setattr(entry, "start_logging", lambda: None)
    where = [f"base.base_dir={tmp_path}/base"] if "experiment=demo" in chosen else []
    small = ["minicode.num_train_problems=4", "minicode.num_test_problems=4", f"run_dir={tmp_path}/run"]
    monkeypatch.setattr("sys.argv", ["pipeline.py", *chosen, *where, *small, "--until=problems"])
    pipeline.main()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "problems" / "manifest.json").is_file()


@pytest.mark.parametrize(("until", "missing"), [("samples", "model"), ("report", "benchmark")])
def test_a_section_that_a_later_stage_reads_is_needed_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], until: str, missing: str
) -> None:
    monkeypatch.setattr(entry, "start_logging", lambda: None)
    models = ["model=tiny"] if missing != "model" else []
    overrides = ["problems=minicode", *models, f"run_dir={tmp_path}/run", f"--until={until}"]
    monkeypatch.setattr("sys.argv", ["pipeline.py", *overrides])
    with pytest.raises(SystemExit):
        pipeline.main()
    assert capsys.readouterr().err.startswith(f"error: {missing} = null: ")
    assert not list(tmp_path.iterdir())


def test_the_pipeline_and_its_stages_ignore_a_launcher_that_did_not_start_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["script"])
    with pytest.raises(SystemExit):
        entry.main(act_as_rank, description="", takes_ranks=True)
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit):
        entry.main(act_alone, description="")
    assert capsys.readouterr().err == "error: a: b; c\n"


def act_as_rank(config: RunConfig) -> None:
    assert config.worker.resolved(os.environ).label == "worker 1 of 2"
    raise UserError("a", rule="b", fix="c")


def act_alone(config: RunConfig) -> None:
    assert config.worker.resolved(os.environ).is_alone
    raise UserError("a", rule="b", fix="c")
