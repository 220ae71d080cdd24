"""Tests for the report's table of general benchmarks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from megatron_ssd.errors import UserError
from megatron_ssd.evaluation.tables import UNKNOWN, Measured, points
from megatron_ssd.report.content import with_stderr
from megatron_ssd.report.data import read_benchmarks
from megatron_ssd.report.render import run_report
from megatron_ssd.report.stage import report_stage
from tests.helpers.report_run import read_page, read_summary, run_config


def test_values_are_written_as_lm_eval_gives_them(published: Path) -> None:
    found = read_benchmarks(published)
    assert found is not None
    humaneval, mmlu = found.results
    assert with_stderr(humaneval.base) == Measured(value="75.0", interval="± 3.4")
    assert points(humaneval.difference) == Measured(value="−0.6", interval="−4.3 to +3.0")  # noqa: RUF001
    assert (mmlu.rows, mmlu.rows_on_hub, mmlu.num_fewshot) == (6, 14042, 5)
    assert with_stderr(mmlu.ssd) == Measured(value="33.3", interval="standard error unknown")
    assert points(mmlu.difference).value == "0.0"


def test_page_and_summary_contain_the_benchmarks(published: Path) -> None:
    page = read_page(published)
    assert '<a href="#benchmarks">' in page
    assert "<small>of 14,042</small>" in page
    assert "<small>of 164</small>" not in page  # humaneval has as many rows as published numbers cover
    assert [row["task"] for row in read_summary(published)["general_benchmarks"]] == [
        "humaneval", "mmlu"
    ]  # fmt: skip


def test_a_run_without_benchmarks_has_another_report_without_the_section(run_dir: Path) -> None:
    config = run_config(run_dir)
    with_them = report_stage(config).identity
    shutil.rmtree(run_dir / "general_benchmarks")
    assert report_stage(config).identity != with_them
    run_report(config)
    assert 'id="benchmarks"' not in read_page(run_dir)


def test_a_base_without_a_tuned_model_has_no_difference(tmp_path: Path) -> None:
    row = {"task": "t", "metric": "acc", "filter": "strict", "num_fewshot": 0, "rows_on_hub": None, "difference": None,
           "base": {"value": 0.5, "stderr": 0.1, "rows": 9}}  # fmt: skip
    (tmp_path / "general_benchmarks").mkdir()
    (tmp_path / "general_benchmarks" / "summary.json").write_text(
        json.dumps({"confidence": 0.95, "chat_template": False, "results": [row]})
    )
    results = read_benchmarks(tmp_path)
    assert results is not None
    (found,) = results.results
    assert found.title == "acc (strict)"
    assert with_stderr(found.ssd) == points(found.difference) == UNKNOWN


def test_a_summary_of_another_version_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "general_benchmarks").mkdir()
    (tmp_path / "general_benchmarks" / "summary.json").write_text('{"rows": []}')
    with pytest.raises(
        UserError, match=r"is not a summary of this version .*; rename .* and run launch/general_benchmarks"
    ):
        read_benchmarks(tmp_path)


def test_a_folder_of_an_older_version_gives_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "regression").mkdir()
    assert read_benchmarks(tmp_path) is None
    (message,) = caplog.messages
    assert str(tmp_path / "regression") in message
    assert "run launch/general_benchmarks.py" in message
