"""Tests for prompts without a chat template, from the problems to the data set, with the real engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from megatron_ssd.artifacts.jsonl import read_jsonl
from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.dataset.indexed import DATASET_NAME, open_indexed
from megatron_ssd.problems.stage import read_problems
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from tests.helpers.paths import ROOT

from .conftest import SMALL, Loop


def test_raw_prompts_are_sampled_and_trained_on_as_plain_text(loop: Loop, finished: Path, tmp_path: Path) -> None:
    (model,) = loop.base_dir.glob("*/export")
    run_dir = loop.copy(finished, tmp_path, "problems")
    options = [*SMALL, f"run_dir={run_dir}", f"model.path={model}", "prompt.mode=raw", "engine.data_parallel_size=1"]
    for script in ("launch/generate.py", "tools/preprocess_data.py"):
        done = subprocess.run([sys.executable, ROOT / script, *options, "filters=none"], capture_output=True, text=True,
                              timeout=300, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
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
    documents = open_indexed(run_dir / "dataset" / DATASET_NAME)
    assert [list(documents[2 * number]) for number in range(len(samples))] == [
        sample["prompt_token_ids"] for sample in samples
    ]
