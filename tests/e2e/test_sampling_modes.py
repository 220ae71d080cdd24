"""Tests for noisy sampling with the proxy filter, and for prompts without a chat template, with the real engines.

One run has both, since starting its engines takes longer than its work.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_ssd.artifacts.jsonl import read_jsonl
from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.dataset.indexed import DATASET_NAME, open_indexed
from megatron_ssd.problems.stage import read_problems
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from tests.helpers.scripts import run_script

from .conftest import SMALL, Loop

OPTIONS = ("sampling=noisy", "prompt.mode=raw", "filters=none")
BAND = "filters.proxy_band=[0.25,0.75]"


@pytest.fixture(scope="module")
def model(loop: Loop, finished: Path) -> Path:
    """The base model, which is its own proxy here, since any model can score."""
    assert finished  # the base model exists already
    (folder,) = loop.base_dir.glob("*/export")
    return folder


@pytest.fixture(scope="module")
def run_dir(loop: Loop, finished: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with noisy samples of raw prompts up to the data set, which is filtered by proxy scores."""
    run_dir = loop.copy(finished, tmp_path_factory.mktemp("noisy") / "run", "problems")
    loop.run(run_dir, "--until=dataset", *OPTIONS, f"proxy.path={model}", BAND)
    return run_dir


def test_noisy_samples_are_filtered_by_proxy_score(loop: Loop, finished: Path, model: Path, run_dir: Path) -> None:
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
    dropped = {"outside_proxy_band": len(scores) - dataset.counts["documents"], "no_proxy_score": 64 - len(scores)}
    assert dataset.dropped == {reason: count for reason, count in dropped.items() if count}
    assert 0 < dataset.counts["no_code"] <= 64
    loop.copy(finished, run_dir, "checkpoints", "export", "eval")
    options = [*OPTIONS, f"proxy.path={model}", BAND]
    done = run_script("launch/report.py", *SMALL, f"run_dir={run_dir}", f"model.path={model}", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((run_dir / "report" / "summary.json").read_text())
    assert summary["sampling"]["num_kept"] == dataset.counts["documents"]


def test_raw_prompts_are_sampled_and_trained_on_as_plain_text(
    loop: Loop, finished: Path, model: Path, run_dir: Path, tmp_path: Path
) -> None:
    tokenizer = ChatTokenizer(model)
    statements = {problem.id: problem.statement for problem in read_problems(run_dir)}
    samples = [sample for shard in sorted((run_dir / "samples").glob("shard-*.jsonl")) for sample in read_jsonl(shard)]
    assert [sample["problem_id"] for sample in samples] == list(statements)
    chat = {sample["problem_id"]: sample["prompt_token_ids"] for shard in (finished / "samples").glob("shard-*.jsonl")
            for sample in read_jsonl(shard)}  # fmt: skip
    for sample in samples:
        assert sample["prompt_token_ids"] == tokenizer.text_ids(statements[sample["problem_id"]])
        assert sample["prompt_token_ids"] != chat[sample["problem_id"]]
    assert read_manifest(run_dir / "samples").config["prompt"]["mode"] == "raw"
    unfiltered = loop.copy(run_dir, tmp_path / "run", "problems", "samples")
    done = run_script("tools/preprocess_data.py", *SMALL, f"run_dir={unfiltered}", f"model.path={model}", *OPTIONS)
    assert done.returncode == 0, done.stderr[-4000:]
    documents = open_indexed(unfiltered / "dataset" / DATASET_NAME)
    assert [list(documents[2 * number]) for number in range(len(samples))] == [
        sample["prompt_token_ids"] for sample in samples
    ]
