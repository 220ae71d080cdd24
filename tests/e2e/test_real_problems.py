"""Tests for the pipeline on real competitive-programming problems."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ssd.artifacts.jsonl import read_jsonl
from megatron_ssd.artifacts.manifest import read_manifest
from tests.helpers.paths import CODEFORCES, RSTAR, needs
from tests.helpers.scripts import run_script

from .conftest import SMALL_BASE, Loop


@pytest.mark.slow
@needs(RSTAR, CODEFORCES)
def test_the_pipeline_ends_with_a_report_that_states_its_limits(loop: Loop, finished: Path, tmp_path: Path) -> None:
    assert finished  # the base model exists already
    run_dir = tmp_path / "run"
    done = run_script(
        "launch/pipeline.py", "+experiment=demo", "problems=rstar_coder", f"problems.path={RSTAR}",
        "problems.limit=64", "contamination.on_hit=drop", "benchmark=livecodebench",
        f"benchmark.sets.livecodebench.path={CODEFORCES}", "benchmark.sets.livecodebench.limit=32",
        f"base.base_dir={loop.base_dir}", f"base.overrides={list(SMALL_BASE)}", f"run_dir={run_dir}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert read_manifest(run_dir / "samples").counts["samples"] == 64
    assert read_manifest(run_dir / "eval").counts["problems"] == 32
    summary = json.loads((run_dir / "report" / "summary.json").read_text())
    assert "writes nothing useful" in summary["notice"]
    assert "writes nothing useful" in done.stdout


@pytest.mark.slow
@needs(CODEFORCES)
def test_the_full_benchmark_is_graded_in_one_run(loop: Loop, finished: Path, tmp_path: Path) -> None:
    assert finished  # the base model exists already
    (model,) = loop.base_dir.glob("*/export")
    done = run_script(
        "launch/evaluate.py", "+experiment=demo", f"model.path={model}", "benchmark=livecodebench",
        f"benchmark.sets.livecodebench.path={CODEFORCES}", "evaluation.models=[base]", "evaluation.num_samples=5",
        "evaluation.temperatures=[1.0]", "evaluation.top_ps=[0.8]", "prompt.template=code", f"run_dir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    manifest = read_manifest(tmp_path / "eval")
    assert manifest.counts["problems"] == 408
    programs = {
        path.stem: read_jsonl(path)
        for path in (tmp_path / "eval" / "livecodebench" / "verdicts" / "base").glob("*.jsonl")
    }
    assert len(programs) == 3  # the default setting, that of the training data, and the one cell of the grid
    for verdicts in programs.values():
        assert len({(each["problem_id"], each["sample_index"]) for each in verdicts}) == len(verdicts) == 408 * 5
        assert not [each for each in verdicts if each["status"] == "infrastructure_error"]
