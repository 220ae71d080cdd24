"""Tests for general benchmarks as a stage of the pipeline, which runs only if tasks are configured."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from .conftest import Loop

STAGES = ("problems", "samples", "dataset", "checkpoints", "export", "eval")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval (make venv)")
def test_general_benchmarks_run_between_evaluation_and_report(loop: Loop, finished: Path, tmp_path: Path) -> None:
    assert not (finished / "general_benchmarks").exists()
    run_dir = loop.copy(finished, tmp_path / "run", *STAGES)
    rows = [{"subject": "anatomy", "question": f"Which is number {n}?", "choices": ["0", "1", "2", "3"], "answer": n}
            for n in range(4)]  # fmt: skip
    data = tmp_path / "mmlu.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = loop.run(run_dir, "general_benchmarks.tasks=[mmlu]", f"general_benchmarks.data.mmlu={data}")
    (result,) = json.loads((run_dir / "general_benchmarks" / "summary.json").read_text())["results"]
    assert (result["task"], result["base"]["rows"], result["ssd"]["rows"]) == ("mmlu", 4, 4)
    assert result["base"]["value"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert '<section id="benchmarks">' in (run_dir / "report" / "report.html").read_text()
    assert "launch/evaluate.py" not in done.stderr  # existing results are not computed again
