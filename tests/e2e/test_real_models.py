"""Tests that a published model goes through the whole loop with nothing said about it but its path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ssd.artifacts.manifest import read_manifest
from tests.helpers.jsonl import write_jsonl
from tests.helpers.paths import REAL_MODELS
from tests.helpers.scripts import run_script

from .conftest import Loop

_PROBLEMS = [
    "Write a function double(x) that returns twice its argument.",
    "Write a function last(items) that returns the last element of a list, or None if it is empty.",
    "Write a function vowels(text) that counts the vowels in a string.",
    "Write a function product(numbers) that multiplies all numbers of a list.",
]
# Of the machine, and of how much is done. Nothing is about the model.
_SMALL = (
    "cluster=cpu", "precision=cpu", "sampling.max_tokens=32", "training.train_iters=2",
    "training.global_batch_size=2", "training.seq_length=512", "training.packing=best_fit",
    "optimizer.lr_warmup_iters=1", "engine.kv_cache_gib=1", "engine.enforce_eager=true", "evaluation.num_samples=2",
    "evaluation.temperatures=[1.0]", "evaluation.top_ps=[0.8]",
)  # fmt: skip


_SECONDS = 3600  # only a hang takes as long


@pytest.mark.slow
@pytest.mark.timeout(_SECONDS)
@pytest.mark.skipif(not REAL_MODELS, reason="needs folders of Hugging Face models in MEGATRON_SSD_TEST_MODELS")
@pytest.mark.parametrize("folder", REAL_MODELS, ids=lambda folder: folder.name)
def test_a_real_model_goes_through_the_whole_loop(folder: Path, loop: Loop, tmp_path: Path) -> None:
    problems = write_jsonl(tmp_path / "problems.jsonl", ({"statement": text} for text in _PROBLEMS))
    run_dir = tmp_path / "run"
    done = run_script(
        "launch/pipeline.py", f"model.path={folder}", "problems=rows", f"problems.path={problems}",
        "benchmark=humaneval_plus",
        f"benchmark.sets.humaneval_plus.path={loop.plus}", f"run_dir={run_dir}", *_SMALL, timeout=_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "training in one process" in done.stderr
    assert read_manifest(run_dir / "samples").counts["samples"] == len(_PROBLEMS)
    assert read_manifest(run_dir / "export").facts["max_logit_difference"] > 0
    base, tuned = (json.loads((path / "config.json").read_text()) for path in (folder, run_dir / "export"))
    assert {key for key in base if base[key] != tuned.get(key)} <= {"dtype", "torch_dtype"}
    summary = json.loads((run_dir / "report" / "summary.json").read_text())
    assert summary["benchmarks"]["humaneval_plus"]["ssd"]["n"]["problems"] > 0
