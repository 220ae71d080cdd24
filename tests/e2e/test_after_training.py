"""Tests for what follows a complete run: the scores of its other checkpoints, and the folder to upload."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_ssd.artifacts.manifest import read_manifest
from tests.helpers.scripts import run_script

from .conftest import Loop

STAGES = ("problems", "samples", "dataset", "checkpoints", "export", "eval")


def test_every_checkpoint_is_measured_and_shown_over_training(loop: Loop, finished: Path, tmp_path: Path) -> None:
    run_dir = loop.copy(finished, tmp_path / "run", *STAGES)
    done = loop.run(run_dir, "evaluation.checkpoints=all")
    assert "eval: up to date" in done.stderr
    other = run_dir / "by_checkpoint" / "iter_0000004"
    assert [path.name for path in other.parent.iterdir()] == [other.name]
    assert read_manifest(other / "export").facts["iteration"] == 4
    assert read_manifest(other / "eval").engine["name"] == "vllm"
    for name in ("minicode", "humaneval_plus"):
        scores = json.loads((run_dir / "report" / "summary.json").read_text())["benchmarks"][name]["checkpoints"]
        assert [one["iteration"] for one in scores["scores"] if one["model"] == "ssd"] == [4, 8]
        assert all(one["report"]["1"]["low"] <= one["report"]["1"]["high"] for one in scores["scores"])
    assert (run_dir / "report" / "report.html").read_text().count("SSD at iteration 4: ") >= 2
    assert read_manifest(run_dir / "report").inputs["by_checkpoint 4"] == read_manifest(other / "eval").content_hash


def test_the_folder_to_upload_has_the_weights_and_the_chosen_setting(finished: Path) -> None:
    done = run_script("launch/push.py", f"run_dir={finished}", "dry_run=true")
    assert done.returncode == 0, done.stderr
    folder = finished / "push" / "model"
    assert (folder / "model.safetensors").samefile(finished / "export" / "model.safetensors")
    assert {line.split()[0] for line in done.stdout.splitlines()[:-1]} == {path.name for path in folder.iterdir()}
    best = json.loads((finished / "report" / "summary.json").read_text())["benchmarks"]["minicode"]["ssd"]["decoding"]
    values = json.loads((folder / "generation_config.json").read_text())
    assert best == f"T{values['temperature']:g}-k{values['top_k']}-p{values['top_p']:g}"
    card = (folder / "README.md").read_text()
    assert f"`generation_config.json` has {best}, the best setting on minicode" in card
    assert card.count("SSD at its best is ahead of") == 2
