"""SIGKILL in each stage, then the same command again: complete output, and no finished unit of work done twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .conftest import Loop


def rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a JSONL file that may end in a torn one."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def samples(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The rows of every shard by what makes them unique."""
    found = [row for path in sorted(folder.glob("*.jsonl")) for row in rows(path)]
    by_key = {(row["problem_id"], row["sample_index"]): row for row in found}
    assert len(by_key) == len(found), "a sample was written twice"
    return by_key


def snapshot(folder: Path, pattern: str) -> dict[str, tuple[int, int]]:
    """Name -> (inode, time of the last write): changes when a file is written again."""
    stats = {path: path.stat() for path in folder.rglob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): (s.st_ino, s.st_mtime_ns) for path, s in stats.items()}


def test_sampling(loop: Loop, finished: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    partial = run_dir / "samples.partial"
    loop.kill_when(run_dir, lambda: len(samples(partial)) >= 8, "--until=samples")
    kept = samples(partial)
    assert len(kept) >= 8
    loop.run(run_dir, "--until=samples")
    final = samples(run_dir / "samples")
    assert {key: final[key] for key in kept} == kept
    reference = samples(finished / "samples")
    assert final.keys() == reference.keys()
    assert {key: row["seed"] for key, row in final.items()} == {key: row["seed"] for key, row in reference.items()}


def test_training(loop: Loop, finished: Path, tmp_path: Path) -> None:
    run_dir = loop.copy(finished, tmp_path / "run", "samples", "dataset")
    partial = run_dir / "checkpoints.partial"
    loop.kill_when(run_dir, lambda: len(rows(partial / "metrics.jsonl")) >= 5, "--until=checkpoints")
    checkpoints = snapshot(partial / "iter_0000004", "*")
    assert checkpoints, "the checkpoint of iteration 4 was not there"
    again = loop.run(run_dir, "--until=checkpoints")
    assert "iteration 4" in again.stderr
    assert snapshot(run_dir / "checkpoints" / "iter_0000004", "*") == checkpoints
    metrics = [rows(folder / "checkpoints" / "metrics.jsonl") for folder in (run_dir, finished)]
    losses = [[(row["iteration"], row["loss"], row["grad_norm"]) for row in found] for found in metrics]
    assert losses[0] == losses[1]  # to the last bit, in order, each iteration once
