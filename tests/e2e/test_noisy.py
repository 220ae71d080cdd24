"""Tests for the noisy sampling regime with the proxy filter, through the full loop with the real engines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from megatron_ssd.artifacts.jsonl import read_jsonl
from megatron_ssd.artifacts.manifest import read_manifest

from .conftest import Loop


def test_noisy_samples_are_filtered_by_proxy_score(loop: Loop, finished: Path, tmp_path: Path) -> None:
    (proxy,) = loop.base_dir.glob("*/export")  # the base model itself, since any model can score
    options = ["sampling=noisy", "filters=none", f"proxy.path={proxy}", "filters.proxy_band=[0.25,0.75]"]
    loop.run(tmp_path, *options)
    samples = read_manifest(tmp_path / "samples")
    assert samples.config["decoding"]["temperature"] == 2.0
    assert samples.config["decoding"]["top_k"] == -1
    scored = read_jsonl(tmp_path / "scores" / "scores.jsonl")
    assert len(scored) == samples.counts["samples"] == 64
    scores = np.array([score["mean_logprob"] for score in scored if score["mean_logprob"] is not None])
    assert (scores < 0).all()
    low, high = np.quantile(scores, [0.25, 0.75])
    dataset = read_manifest(tmp_path / "dataset")
    assert dataset.counts["documents"] == ((scores >= low) & (scores <= high)).sum()
    assert dataset.dropped == {"outside_proxy_band": 64 - dataset.counts["documents"]}
    assert 0 < dataset.counts["no_code"] <= 64
    assert json.loads((tmp_path / "report" / "summary.json").read_text())["sampling"]["num_kept"] < 64
