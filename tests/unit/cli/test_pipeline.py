"""Tests which environment variables the pipeline sets for its stages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.cli.compose import CONFIG_DIR
from megatron_ssd.cli.pipeline import Script, _run_all
from megatron_ssd.process import REPORT_FOLLOWS, UNDER_PIPELINE, run_child

WRITES_ENVIRONMENT = f"""
import os, pathlib, sys
pathlib.Path(sys.argv[0]).with_suffix(".txt").write_text(
    "".join(str(int(bool(os.environ.get(name)))) for name in ({UNDER_PIPELINE!r}, {REPORT_FOLLOWS!r}))
)
"""


@pytest.mark.parametrize(("follows", "seen"), [(True, "11"), (False, "10")])
def test_stages_know_whether_the_report_follows(tmp_path: Path, follows: bool, seen: str) -> None:
    script = tmp_path / "stage.py"
    script.write_text(WRITES_ENVIRONMENT)
    stage = Script(
        str(script), "make something up", lambda _: Stage(name="made_up", run_dir=tmp_path, config={}, inputs={})
    )
    overrides = ["+experiment=demo", f"run_dir={tmp_path}"]
    assert _run_all("stage", [stage], overrides, CONFIG_DIR, total=1, report_follows=follows) == [stage]
    assert script.with_suffix(".txt").read_text() == seen


def test_a_nested_pipeline_sets_its_own_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "stage.py"
    script.write_text(WRITES_ENVIRONMENT)
    monkeypatch.setenv(REPORT_FOLLOWS, "1")
    assert run_child([sys.executable, str(script)]) == 0
    assert script.with_suffix(".txt").read_text() == "10"
