"""Tests for the pipeline from problems to a report, with the real engines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ssd.artifacts.manifest import read_manifest

from .conftest import Loop

STAGES = ("samples", "dataset", "checkpoints", "export", "eval", "report")
DIFFICULTIES = {"easy", "medium", "hard"}


def test_every_stage_is_published_and_names_its_engine(finished: Path) -> None:
    engines = {stage: read_manifest(finished / stage).engine for stage in STAGES}
    assert {engines["samples"]["name"], engines["eval"]["name"]} == {"vllm"}
    assert {engines[stage]["name"] for stage in ("dataset", "checkpoints", "export")} == {"megatron-core"}
    assert not list(finished.glob("*.partial"))


def test_there_is_one_sample_per_problem(finished: Path) -> None:
    samples = [json.loads(line) for path in sorted((finished / "samples").glob("*.jsonl")) for line in path.open()]
    assert len({sample["problem_id"] for sample in samples}) == len(samples) == 64


def test_each_stage_names_the_output_of_the_previous_stage(finished: Path) -> None:
    chain = [("dataset", "samples"), ("checkpoints", "dataset"), ("export", "checkpoints"), ("eval", "export")]
    for later, earlier in chain:
        assert read_manifest(finished / earlier).content_hash in read_manifest(finished / later).inputs.values()


def test_the_summary_has_scores_of_base_and_ssd_with_intervals(finished: Path) -> None:
    summary = json.loads((finished / "report" / "summary.json").read_text())
    scores = summary["benchmarks"]["minicode"]
    for model in (scores["base"], scores["ssd"]):
        assert model["n"] == {"problems": 6, "samples_per_problem": 5}  # the reporting half
        for metric in ("pass@1", "pass@5"):
            assert 0 <= model[metric]["low"] <= model[metric]["value"] <= model[metric]["high"] <= 1
        assert set(model["by_difficulty"]) == DIFFICULTIES
        assert all({"problems", "pass@1", "pass@5"} <= set(scores) for scores in model["by_difficulty"].values())
    titles = [row["title"] for row in scores["headline"]]
    assert titles == [
        "base at its default decode",
        "base at the training decode",
        "base at its best",
        "SSD at its best",
    ]


def test_a_second_benchmark_is_measured_and_shown_beside_the_first(finished: Path) -> None:
    folder, report = finished / "eval" / "humaneval_plus", finished / "report"
    scores = json.loads((report / "summary.json").read_text())["benchmarks"]["humaneval_plus"]
    assert scores["ssd"]["n"] == {"problems": 2, "samples_per_problem": 5}
    assert scores["ssd"]["base_tests"]["pass@1"]["num_problems"] == 2
    assert scores["flawed"] == {}
    page = (report / "report.html").read_text()
    assert all(text in page for text in ('id="together"', 'id="minicode-result"', 'id="humaneval_plus-result"'))
    assert all((report / f"problems-{name}.html").is_file() for name in ("minicode", "humaneval_plus"))
    for model in ("base", "ssd"):
        for path in (folder / "generations" / model).glob("*.jsonl"):
            solutions = [json.loads(line) for line in (folder / "solutions" / model / path.name).open()]
            assert [one["task_id"] for one in solutions] == [f"HumanEval/{n}" for n in range(4) for _ in range(5)]


def test_training_wrote_every_iteration_once(finished: Path) -> None:
    records = [json.loads(line) for line in (finished / "checkpoints" / "metrics.jsonl").open()]
    assert [record["iteration"] for record in records] == list(range(1, 9))
    assert all(record["loss"] > 0 and record["grad_norm"] > 0 for record in records)


def test_a_second_start_finds_everything_up_to_date(loop: Loop, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    again = loop.run(finished)
    for stage in STAGES:
        assert f"{stage}: up to date" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_a_run_with_another_configuration_does_not_overwrite(loop: Loop, finished: Path) -> None:
    with pytest.raises(AssertionError, match=r"seed: 0 then, 1 now.*replace=true"):
        loop.run(finished, "seed=1")
