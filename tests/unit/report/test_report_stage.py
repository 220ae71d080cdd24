"""Tests for the report stage."""

from __future__ import annotations

import dataclasses
import html
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.config.evaluation import ReportConfig
from megatron_ssd.errors import UserError
from megatron_ssd.report.render import run_report
from tests.helpers.report_run import (
    REVISION,
    build_run,
    change_summary,
    read_page,
    read_scores,
    read_summary,
    run_config,
)

MEBIBYTE = 1 << 20


def test_the_stage_publishes_summary_and_pages_with_their_inputs(published: Path) -> None:
    manifest = read_manifest(published / "report")
    assert {output["path"] for output in manifest.outputs} == {"summary.json", "report.html", "problems-minicode.html"}
    assert manifest.inputs == {
        stage: read_manifest(published / stage).content_hash
        for stage in ("problems", "samples", "dataset", "checkpoints", "export", "eval", "general_benchmarks")
    }
    assert (published / "report" / "report.html").stat().st_size < 3 * MEBIBYTE


def test_the_report_needs_the_overrides_of_its_run(published: Path) -> None:
    with pytest.raises(UserError, match=r"model = null: .*same overrides; add them"):
        run_report(dataclasses.replace(run_config(published), model=None, replace=True))


@pytest.mark.parametrize("model", ["base", "ssd"])
def test_the_summary_has_scores_and_intervals_of_both_models(published: Path, model: str) -> None:
    found = read_scores(published)[model]
    assert found["n"] == {"problems": 150, "samples_per_problem": 10}
    for scores in (found, *found["by_difficulty"].values()):
        for k in ("pass@1", "pass@5"):
            assert scores[k]["low"] < scores[k]["value"] < scores[k]["high"]
    assert set(found["by_difficulty"]) == {"easy", "medium", "hard"}


def test_the_summary_has_engines_claims_and_base_revision(published: Path) -> None:
    summary, scores = read_summary(published), read_scores(published)
    assert [score["key"] for score in scores["headline"]] == ["base_default", "base_train", "base_best", "ssd_best"]
    assert summary["stages"]["samples"]["engine"]["name"] == "vllm"
    assert summary["stages"]["checkpoints"]["engine"]["name"] == "megatron-core"
    assert {claim["status"] for claim in scores["claims"]} == {"shown", "not shown", "unclear"}
    assert summary["lineage"]["complete"] is True
    assert summary["lineage"]["base_revision"] == REVISION


def test_summary_and_page_have_the_best_cells_and_the_effective_temperature(published_sweep: Path) -> None:
    found = json.loads((published_sweep / "eval" / "minicode" / "summary.json").read_text())
    decoding = read_scores(published_sweep)["decoding"]
    assert [(best["model"], best["num_cells"]) for best in decoding["best_of_grid"]] == [("base", 90), ("ssd", 90)]
    page = read_page(published_sweep)
    table = page[page.index("What choosing the best of many adds") : page.index("Training and decode temperature")]
    for best, written in zip(found["best_of_grid"], decoding["best_of_grid"], strict=True):
        for name in ("selection", "report", "on_all_problems"):
            assert written[name]["value"] == pytest.approx(best[name]["value"])
            assert f"<b>{100 * best[name]['value']:.1f}</b>" in table
        assert best["decoding"] in table
        assert best["on_all_problems"]["decoding"] in table
    assert len(decoding["effective_temperature"]["points"]) == len(found["effective_temperature"]["points"]) == 180
    first = decoding["effective_temperature"]["points"][0]
    assert first["low"] < first["value"] < first["high"]
    assert decoding["beside_grid"]["decoding"] == "T1.6-k20-p0.8"
    assert decoding["effective_temperature"]["train_temperature"] == 1.6
    assert "base, beside the table" in page


def test_summary_and_page_have_the_results_of_decontamination(published: Path) -> None:
    problems = read_summary(published)["problems"]
    assert problems["dropped"] == {"duplicate": 1200, "contaminated": 30, "no_text": 0}
    assert problems["sets"] == [
        {"name": "humaneval", "kept": 1, "left_out": 30}, {"name": "minicode", "kept": 0, "left_out": 0},
    ]  # fmt: skip
    first, second = problems["hits"][:2]
    assert (first["problem_id"], first["overlap"], first["kept"]) == (
        "seed_30",
        0.6,
        True,
    )  # a hit that was kept comes first
    assert (second["exact"], second["kept"]) == (True, False)
    assert len(problems["hits"]) == problems["num_hits"] == 31
    page = read_page(published)
    for text in ("selection 0123456789abcdef", "1,200", "seed_30", "&lt;b&gt;HumanEval/30", "60 %", "20 of 31 hits"):
        assert text in page
    assert "<b>HumanEval" not in page


def test_the_sign_test_and_the_diversity_of_programs_are_shown_with_the_scores(published: Path) -> None:
    page = read_page(published)
    for text in (
        "61, 40, 49",
        ">0.046<",
        ">7.3<",
        ">2.6<",
        ">230<",
        "8.0 %",
        "Distinct programs of 10",
        "no code: no fence",
        "no code: empty block",
    ):
        assert text in page
    base = read_scores(published)["base"]
    assert list(base["ssd_ahead_by"]) == ["pass@1", "pass@5", "pass@10"]
    assert base["ssd_ahead_by"]["pass@5"]["sign_test"] == {"ahead": 61, "behind": 40, "tied": 49, "p_value": 0.046}
    assert base["diversity"] == {"distinct": 7.31, "distinct_passing": 2.64, "num_solved": 230, "no_code": 0.08}


def test_errata_are_reported_in_one_line_if_there_are_any(
    published: Path, published_real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "1 of 300 problems are in LiveCodeBench's errata; kept, as the official evaluation counts them"
    run_report(run_config(published_real, benchmark="livecodebench"))
    assert line in capsys.readouterr().out.splitlines()
    assert html.escape(line).replace("&#x27;", "&#39;") in read_page(published_real)
    assert read_scores(published_real)["errata"]["line"] == line
    assert "errata" not in read_page(published)


def test_several_benchmarks_are_shown_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir, names = tmp_path / "run", ("humaneval_plus", "minicode")
    build_run(run_dir, benchmarks=names)

    def extend(summary: dict[str, Any]) -> None:
        summary["flawed"] = {"HumanEval/32": "its canonical solution fails"}
        for score in summary["headline"]:
            score["base_tests"] = {"1": {"value": 0.777, "low": 0.7, "high": 0.8}}

    change_summary(run_dir, extend)
    run_report(run_config(run_dir))
    printed, page, scores = capsys.readouterr().out, read_page(run_dir), read_summary(run_dir)["benchmarks"]
    assert list(scores) == list(names)
    assert [one["base_tests"] is None for one in (scores[name]["ssd"] for name in names)] == [False, True]
    assert scores["humaneval_plus"]["ssd"]["base_tests"]["pass@1"]["value"] == 0.777
    for text in (printed, page):
        assert "77.7" in text
        assert "HumanEval/32 (1 of 300 problems)" in text
        assert all(name in text for name in names)
    assert {f"problems-{name}.html" for name in names} < {path.name for path in (run_dir / "report").iterdir()}


def test_an_evaluation_of_a_version_with_one_benchmark_is_refused(run_dir: Path) -> None:
    path = run_dir / "eval" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["facts"] = {"dates": None}
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"eval: is from a version without a folder .*launch/evaluate\.py again"):
        run_report(run_config(run_dir))


def test_a_current_report_is_printed_and_left_unchanged(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = published / "report" / "report.html"
    before = page.stat().st_mtime_ns
    run_report(run_config(published))
    lines = capsys.readouterr().out.splitlines()
    assert page.stat().st_mtime_ns == before
    assert lines[-1] == f"report: {page}"
    assert any(line.startswith("SSD at its best") and "34.5" in line for line in lines)


def test_the_same_run_gives_the_same_bytes(run_dir: Path) -> None:
    pages = []
    for _ in range(2):
        run_report(run_config(run_dir))
        pages.append([(run_dir / "report" / name).read_bytes() for name in ("report.html", "problems-minicode.html")])
        shutil.rmtree(run_dir / "report")
    assert pages[0] == pages[1]


def test_a_report_with_another_page_size_does_not_overwrite(published: Path) -> None:
    smaller = dataclasses.replace(run_config(published), report=ReportConfig(page_mib=4))
    with pytest.raises(UserError, match=r"report\.page_mib: 8\.0 then, 4 now.*replace=true"):
        run_report(smaller)


def test_a_missing_stage_is_an_error_that_names_it(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "export")
    with pytest.raises(UserError, match=r"export: (has no manifest\.json|does not exist); run launch/export\.py"):
        run_report(run_config(run_dir))
    assert not (run_dir / "report").exists()


def test_a_summary_of_another_version_is_an_error_with_the_missing_key(run_dir: Path) -> None:
    change_summary(run_dir, lambda summary: summary.pop("headline"))
    with pytest.raises(UserError, match="headline"):
        run_report(run_config(run_dir))


def test_the_result_names_every_metric_in_which_one_model_is_clearly_ahead(run_dir: Path) -> None:
    def change(summary: dict[str, Any]) -> None:
        (base,) = (score for score in summary["headline"] if score["key"] == "base_best")
        for k, (value, low, high) in {
            "1": (0.01, -0.05, 0.07),
            "5": (-0.1, -0.18, -0.02),
            "10": (0.0, -0.1, 0.1),
        }.items():
            base["ssd_gain"][k].update(value=value, low=low, high=high)

    change_summary(run_dir, change)
    run_report(run_config(run_dir))
    result = read_scores(run_dir)["result"].replace("\N{NO-BREAK SPACE}", " ")
    assert "in pass@1 this run does not tell the two apart." in result
    assert "In pass@5 it is \N{MINUS SIGN}10.0 points" in result
    assert result.endswith("the base is ahead.")
    assert "pass@10" not in result


def test_every_output_of_a_tiny_model_on_real_problems_has_a_notice(
    published: Path, published_real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_report(run_config(published_real, benchmark="livecodebench"))
    printed = capsys.readouterr().out
    page = read_page(published_real)
    summary = read_summary(published_real)
    for text in (printed, page, summary["notice"]):
        assert "million parameters" in text
        assert "nothing useful" in text
    assert "million parameters" not in read_page(published)


def test_settings_are_those_with_which_a_stage_ran(published: Path) -> None:
    settings = read_summary(published)["settings"]
    assert run_config(published).parallel.world_size == 1
    assert settings["parallel.world_size"] == 2


def test_a_missing_score_is_not_measured_on_the_page_and_null_in_the_summary(run_dir: Path) -> None:

    def lose_a_score(summary: dict[str, Any]) -> None:
        score = summary["headline"][0]
        unknown = dict.fromkeys(("value", "low", "high"))
        score["overall"]["5"] = score["by_difficulty"]["hard"]["5"] = unknown
        summary["best_of_grid"][0].update(report=unknown, grid_mean={"selection": 0.4, "report": None})
        summary["effective_temperature"]["points"][0].update(unknown)

    change_summary(run_dir, lose_a_score)
    run_report(run_config(run_dir))
    page = read_page(run_dir)
    assert "not measured" in page
    assert "nan" not in page.lower().split()
    summary = json.loads((run_dir / "report" / "summary.json").read_text(), parse_constant=pytest.fail)
    headline = summary["benchmarks"]["minicode"]["headline"]
    assert [headline[0]["pass@5"][name] for name in ("value", "low", "high")] == [None] * 3


def test_an_evaluation_of_only_one_model_is_an_error_with_the_fix(run_dir: Path) -> None:
    change_summary(run_dir, lambda summary: summary["headline"].pop())
    with pytest.raises(UserError, match="has no ssd_best; evaluate both"):
        run_report(run_config(run_dir))


@pytest.mark.parametrize("key", ["by_difficulty", "grid"])
def test_a_run_without_difficulties_or_grid_still_has_a_page(run_dir: Path, key: str) -> None:

    def remove(summary: dict[str, Any]) -> None:
        if key == "grid":
            summary["grid"], summary["effective_temperature"]["points"] = [], []
        for score in summary["headline"] if key == "by_difficulty" else []:
            score["by_difficulty"], score["problems_by_difficulty"] = {}, {}

    change_summary(run_dir, remove)
    run_report(run_config(run_dir))
    assert (run_dir / "report" / "report.html").stat().st_size > 0


def test_scores_of_zero_are_reported_in_words(published_real: Path) -> None:
    summary = read_scores(published_real)
    assert summary["result"].startswith("Neither the base nor the self-distilled model solves a problem")
