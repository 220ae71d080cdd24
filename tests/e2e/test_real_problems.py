"""The same stages on real competitive-programming problems, from sampling to a report that says what it is worth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ssd.artifacts.manifest import read_manifest

from .conftest import ROOT, SMALL_BASE, Loop
from .test_bad_input import start

DATA = ROOT.parent / "shared" / "data"
PROBLEMS, BENCHMARK = DATA / "rstar_coder_seed_sft", DATA / "lcb_schema" / "codeforces_408.jsonl"


@pytest.mark.skipif(not (PROBLEMS.is_dir() and BENCHMARK.is_file()), reason="needs ../shared/data beside the project")
def test_the_loop_ends_with_a_report(loop: Loop, finished: Path, tmp_path: Path) -> None:
    assert finished  # the base model is made by now
    run_dir = tmp_path / "run"
    done = start(
        "launch/pipeline.py", "+experiment=demo", "problems=rstar_coder", f"problems.path={PROBLEMS}",
        "problems.limit=64", "contamination.on_hit=drop", "benchmark=livecodebench", f"benchmark.path={BENCHMARK}",
        "benchmark.limit=32",
        f"base.base_dir={loop.base_dir}", f"base.overrides={list(SMALL_BASE)}", f"run_dir={run_dir}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert read_manifest(run_dir / "samples").counts["samples"] == 64
    assert read_manifest(run_dir / "eval").counts["problems"] == 32
    summary = json.loads((run_dir / "report" / "summary.json").read_text())
    assert "writes nothing useful" in summary["notice"]
    assert "writes nothing useful" in done.stdout
