"""Tests for the chain of stages from the scores to the base model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.report.lineage import Lineage, trace
from megatron_ssd.report.render import run_report
from tests.helpers.report_run import read_page, run_config


def _trace(run_dir: Path) -> Lineage:
    return trace(run_dir, base_model=run_dir.parent / "base" / "export", base_revision="r")


def test_the_chain_reaches_from_the_scores_into_the_run_that_made_the_base(run_dir: Path) -> None:
    lineage = _trace(run_dir)
    assert lineage.is_complete
    folders = [step.folder for step in lineage.steps]
    assert folders == ["eval", "export", "checkpoints", "dataset", "samples", "problems"]
    assert [step.folder for step in lineage.base_steps] == ["base/export", "base/checkpoints", "base/dataset"]


def test_inputs_from_outside_are_sources_and_do_not_break_the_chain(run_dir: Path) -> None:
    lineage = trace(run_dir, base_model=None, base_revision="hub-commit")
    assert lineage.is_complete
    sources = {link.role for step in lineage.steps for link in step.links if link.status == "source"}
    assert sources == {"assets", "benchmark minicode", "model", "source", "template"}
    assert lineage.base_steps == ()


def test_a_stage_that_is_published_again_breaks_the_link_of_the_next_stage(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "samples")
    again = Stage(name="samples", run_dir=run_dir, config={"seed": 2}, inputs={})
    (again.begin() / "shard-00000.jsonl").write_text("")
    again.publish()
    broken = [link for step in _trace(run_dir).steps for link in step.links if link.status == "broken"]
    assert [(link.role, link.reason) for link in broken] == [("samples", "samples/ has been published again since")]
    assert not _trace(run_dir).is_complete


def test_stages_with_different_base_models_are_a_conflict(run_dir: Path) -> None:
    inputs = read_manifest(run_dir / "eval").inputs
    summary = (run_dir / "eval" / "minicode" / "summary.json").read_text()
    shutil.rmtree(run_dir / "eval")
    again = Stage(name="eval", run_dir=run_dir, config={}, inputs={**inputs, "model": "f" * 64})
    (again.begin() / "summary.json").write_text(summary)
    again.publish()
    lineage = _trace(run_dir)
    assert not lineage.is_complete
    assert "eval has ffffffffffff" in lineage.conflict
    assert "samples has" in lineage.conflict


def test_a_commit_is_not_compared_with_a_hash_of_files(run_dir: Path) -> None:
    inputs = read_manifest(run_dir / "eval").inputs
    shutil.rmtree(run_dir / "eval")
    again = Stage(name="eval", run_dir=run_dir, config={}, inputs={**inputs, "model": "c" * 40})
    again.begin()
    again.publish()
    assert _trace(run_dir).is_complete


def test_a_missing_stage_breaks_the_chain(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "dataset")
    broken = [link for step in _trace(run_dir).steps for link in step.links if link.status == "broken"]
    assert [(link.role, link.reason) for link in broken] == [("dataset", "dataset/ does not exist")]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "data.bin is missing"),
        (lambda path: path.write_bytes(b"cut"), "data.bin has 3 bytes"),
    ],
)
def test_a_damaged_file_is_named(run_dir: Path, damage: object, message: str) -> None:
    damage(run_dir / "export" / "data.bin")  # type: ignore[operator]
    lineage = _trace(run_dir)
    assert not lineage.is_complete
    assert any(message in step.problem for step in lineage.steps if step.folder == "export")


def test_the_page_shows_a_broken_chain(run_dir: Path) -> None:
    (run_dir / "export" / "data.bin").unlink()
    run_report(run_config(run_dir))
    page = read_page(run_dir)
    assert "The chain is broken." in page
    assert "broken: data.bin is missing" in page
