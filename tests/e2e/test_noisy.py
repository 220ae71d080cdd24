"""Tests for the noisy sampling regime with the proxy filter, through the full loop with the real engines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from megatron_ssd.artifacts.jsonl import read_jsonl
from megatron_ssd.artifacts.manifest import read_manifest
from tests.helpers.scripts import run_script

from .conftest import SMALL, Loop


def test_noisy_samples_are_filtered_by_proxy_score(loop: Loop, finished: Path, tmp_path: Path) -> None:
    (proxy,) = loop.base_dir.glob("*/export")  # the base model itself, since any model can score
    options = ["sampling=noisy", "filters=none", f"proxy.path={proxy}", "filters.proxy_band=[0.25,0.75]"]
    run_dir = loop.copy(finished, tmp_path / "run", "problems")
    loop.run(run_dir, "--until=dataset", *options)
    samples = read_manifest(run_dir / "samples")
    assert samples.config["decoding"]["temperature"] == 2.0
    assert samples.config["decoding"]["top_k"] == -1
    scored = read_jsonl(run_dir / "scores" / "scores.jsonl")
    assert len(scored) == samples.counts["samples"] == 64
    scores = np.array([score["mean_logprob"] for score in scored if score["mean_logprob"] is not None])
    assert (scores < 0).all()
    low, high = np.quantile(scores, [0.25, 0.75])
    dataset = read_manifest(run_dir / "dataset")
    assert dataset.counts["documents"] == ((scores >= low) & (scores <= high)).sum()
    assert dataset.dropped == {"outside_proxy_band": 64 - dataset.counts["documents"]}
    assert 0 < dataset.counts["no_code"] <= 64
    loop.copy(finished, run_dir, "checkpoints", "export", "eval")
    done = run_script("launch/report.py", *SMALL, f"run_dir={run_dir}", f"model.path={proxy}", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((run_dir / "report" / "summary.json").read_text())
    assert summary["sampling"]["num_kept"] == dataset.counts["documents"]
