"""The stage as a whole: what it publishes, what it prints, and when it does nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.errors import UserError
from megatron_ssd.report.stage import run_report
from tests.unit.report.report_run import REVISION, build_run, run_config

MEBIBYTE = 1 << 20


def test_publishes_summary_and_page_with_their_lineage(published: Path) -> None:
    manifest = read_manifest(published / "report")
    assert {output["path"] for output in manifest.outputs} == {"summary.json", "report.html"}
    assert manifest.inputs == {
        stage: read_manifest(published / stage).content_hash
        for stage in ("problems", "samples", "dataset", "checkpoints", "export", "eval", "regression")
    }
    assert (published / "report" / "report.html").stat().st_size < 2 * MEBIBYTE


@pytest.mark.parametrize("model", ["base", "ssd"])
def test_summary_has_scores_n_and_intervals_of_both_models(published: Path, model: str) -> None:
    row = json.loads((published / "report" / "summary.json").read_text())[model]
    assert row["n"] == {"problems": 150, "samples_per_problem": 10}
    for scores in (row, *row["by_difficulty"].values()):
        for k in ("pass@1", "pass@5"):
            assert scores[k]["low"] < scores[k]["value"] < scores[k]["high"]
    assert set(row["by_difficulty"]) == {"easy", "medium", "hard"}


def test_summary_names_engines_claims_and_base_revision(published: Path) -> None:
    summary = json.loads((published / "report" / "summary.json").read_text())
    assert [row["key"] for row in summary["headline"]] == ["base_default", "base_train", "base_best", "ssd_best"]
    assert summary["stages"]["samples"]["engine"]["name"] == "vllm"
    assert summary["stages"]["checkpoints"]["engine"]["name"] == "megatron-core"
    assert {claim["status"] for claim in summary["claims"]} == {"shown", "not shown", "unclear"}
    assert summary["lineage"]["whole"] is True
    assert summary["lineage"]["base_revision"] == REVISION


def test_what_the_gate_found_is_in_summary_and_page(published: Path) -> None:
    problems = json.loads((published / "report" / "summary.json").read_text())["problems"]
    assert problems["dropped"] == {"duplicate": 1200, "contaminated": 30, "no_text": 0}
    assert problems["sets"] == [
        {"name": "humaneval", "kept": 1, "left_out": 30}, {"name": "minicode", "kept": 0, "left_out": 0},
    ]  # fmt: skip
    first, second = problems["hits"][:2]
    assert (first["problem_id"], first["overlap"], first["kept"]) == ("seed_30", 0.6, True)  # what matters most
    assert (second["exact"], second["kept"]) == (True, False)
    assert len(problems["hits"]) == problems["num_hits"] == 31
    page = (published / "report" / "report.html").read_text()
    for text in ("selection 0123456789abcdef", "1,200", "seed_30", "&lt;b&gt;HumanEval/30", "60 %", "20 of 31 hits"):
        assert text in page
    assert "<b>HumanEval" not in page


def test_prints_the_table_and_the_page_and_leaves_current_output_alone(
    published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = published / "report" / "report.html"
    before = page.stat().st_mtime_ns
    run_report(run_config(published))
    lines = capsys.readouterr().out.splitlines()
    assert page.stat().st_mtime_ns == before
    assert lines[-1] == f"report: {page}"
    assert any(line.startswith("SSD at its best") and "34.5" in line for line in lines)


def test_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    build_run(run_dir)
    pages = []
    for _ in range(2):
        run_report(run_config(run_dir))
        pages.append((run_dir / "report" / "report.html").read_bytes())
        shutil.rmtree(run_dir / "report")
    assert pages[0] == pages[1]


def test_a_run_without_a_stage_is_an_error_that_names_it(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    build_run(run_dir)
    shutil.rmtree(run_dir / "export")
    with pytest.raises(UserError, match=r"export: has no manifest\.json; run the stage"):
        run_report(run_config(run_dir))
    assert not (run_dir / "report").exists()


def test_a_summary_of_another_version_is_an_error_with_the_missing_key(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    build_run(run_dir)
    _change_summary(run_dir, lambda summary: summary.pop("headline"))
    with pytest.raises(UserError, match="headline"):
        run_report(run_config(run_dir))


def test_real_problems_with_a_tiny_model_carry_a_notice_everywhere(
    published: Path, published_real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_report(run_config(published_real, benchmark="livecodebench"))
    printed = capsys.readouterr().out
    page = (published_real / "report" / "report.html").read_text()
    summary = json.loads((published_real / "report" / "summary.json").read_text())
    for text in (printed, page, summary["notice"]):
        assert "million parameters" in text
        assert "nothing useful" in text
    assert "million parameters" not in (published / "report" / "report.html").read_text()


def test_what_a_stage_ran_with_outweighs_what_is_asked_for_now(published: Path) -> None:
    settings = json.loads((published / "report" / "summary.json").read_text())["settings"]
    assert run_config(published).parallel.world_size == 1
    assert settings["parallel.world_size"] == 2


def _change_summary(run_dir: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = run_dir / "eval" / "summary.json"
    summary = json.loads(path.read_text())
    change(summary)
    path.write_text(json.dumps(summary))


def test_what_the_judge_could_not_measure_is_shown_as_such_and_null_for_machines(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    build_run(run_dir)

    def lose_a_score(summary: dict[str, Any]) -> None:
        row = summary["headline"][0]
        row["overall"]["5"] = row["by_difficulty"]["hard"]["5"] = dict.fromkeys(("value", "low", "high"))

    _change_summary(run_dir, lose_a_score)
    run_report(run_config(run_dir))
    page = (run_dir / "report" / "report.html").read_text()
    assert "not measured" in page
    assert "nan" not in page.lower().split()
    summary = json.loads((run_dir / "report" / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["headline"][0]["pass@5"] == {"value": None, "low": None, "high": None}


def test_an_evaluation_of_one_model_only_is_an_error_with_the_fix(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    build_run(run_dir)
    _change_summary(run_dir, lambda summary: summary["headline"].pop())
    with pytest.raises(UserError, match="has no ssd_best; evaluate both"):
        run_report(run_config(run_dir))


@pytest.mark.parametrize("key", ["by_difficulty", "grid"])
def test_a_run_without_difficulties_or_grid_still_has_a_page(tmp_path: Path, key: str) -> None:
    run_dir = tmp_path / "run"
    build_run(run_dir)

    def take_away(summary: dict[str, Any]) -> None:
        summary["grid"] = [] if key == "grid" else summary["grid"]
        for row in summary["headline"] if key == "by_difficulty" else []:
            row["by_difficulty"], row["problems_by_difficulty"] = {}, {}

    _change_summary(run_dir, take_away)
    run_report(run_config(run_dir))
    assert (run_dir / "report" / "report.html").stat().st_size > 0


def test_scores_of_zero_are_said_in_words(published_real: Path) -> None:
    summary = json.loads((published_real / "report" / "summary.json").read_text())
    assert summary["result"].startswith("Neither the base nor the self-distilled model solves a problem")
