"""Tests that a missing score is reported in words, without NaN in the terminal, the pages or the summaries.

The real code evaluates runs on problems without difficulties, on one problem per difficulty, and with failing grading.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from megatron_ssd.evaluation.grid import split_halves
from megatron_ssd.evaluation.tables import score_tables
from megatron_ssd.report.render import run_report
from megatron_ssd.schema import Problem
from tests.helpers.evaluated_run import SAMPLING, Fails, evaluate, publish_evaluation
from tests.helpers.jsonl import complete_records, write_jsonl
from tests.helpers.programs import function_problem
from tests.helpers.report_run import read_page, read_scores, run_config

BAD = re.compile(r"(?<![A-Za-z])(?:[Nn]a[Nn]|None|[Ii]nf(?:inity)?|undefined)(?![A-Za-z])")


def problems_of(*difficulties: str | None) -> list[Problem]:
    """One problem for each of ``difficulties``."""
    return [replace(function_problem(f"p{index}"), difficulty=name) for index, name in enumerate(difficulties)]


def on_reporting_half(problems: Sequence[Problem]) -> set[str]:
    """Ids of the problems on the reporting half."""
    report = split_halves(problems).report
    return {problem.id for problem, inside in zip(problems, report, strict=True) if inside}


MIXED = problems_of(*("easy", "medium", "hard") * 4)
REPORTED = on_reporting_half(MIXED)
CASES: dict[str, tuple[list[Problem], Fails]] = {
    "no hard problem": (problems_of("easy", "easy", "medium", "medium"), lambda *_: False),
    "no difficulty": (problems_of(None, None, None, None), lambda *_: False),
    "one problem per difficulty": (problems_of("easy", "medium", "hard"), lambda *_: False),
    "two problems": (problems_of("easy", "hard"), lambda *_: False),
    "grading fails on hard problems": (MIXED, lambda model, decoding, problem: problem.difficulty == "hard"),
    "grading fails on the reporting half of SSD": (
        MIXED, lambda model, _, problem: model == "ssd" and problem.id in REPORTED
    ),
    "grading fails on the reporting half": (MIXED, lambda model, decoding, problem: problem.id in REPORTED),
    "grading fails at the training decode": (MIXED, lambda model, decoding, problem: decoding == SAMPLING.train),
    "grading fails on other problems of each model": (
        MIXED, lambda model, _, problem: (problem.difficulty == "easy") == (model == "ssd")
    ),
}  # fmt: skip


def texts(values: Any) -> list[str]:
    """Every string in JSON values."""
    if isinstance(values, dict):
        return [text for inner in values.values() for text in texts(inner)]
    if isinstance(values, list):
        return [text for inner in values for text in texts(inner)]
    return [values] if isinstance(values, str) else []


@pytest.mark.parametrize("case", CASES)
def test_no_output_of_a_run_contains_nan_or_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    run_dir = tmp_path / "run"
    results, found = evaluate(*CASES[case])
    publish_evaluation(run_dir, results, found)
    run_report(run_config(run_dir))
    seen = {"the table of the evaluation": score_tables(results), "the terminal": capsys.readouterr().out}
    for name in ("eval/minicode/summary.json", "report/summary.json"):
        seen[name] = "\n".join(texts(json.loads((run_dir / name).read_text(), parse_constant=pytest.fail)))
    for name in ("report.html", "problems-minicode.html"):
        page = (run_dir / "report" / name).read_text()
        seen[name] = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    assert "SSD at its best" in seen["the terminal"]
    found_in = {name: text[max(bad.start() - 60, 0) : bad.end()] for name, text in seen.items()
                for bad in BAD.finditer(text)}  # fmt: skip
    assert found_in == {}


def test_a_missing_score_is_reported_as_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    publish_evaluation(run_dir, *evaluate(*CASES["grading fails on the reporting half of SSD"]))
    run_report(run_config(run_dir))
    assert "not measured" in capsys.readouterr().out
    result = read_scores(run_dir)["result"]
    assert result == ("Not measured: grading failed on every problem of the reporting half (SSD at its best).")
    assert "\N{EN DASH} %" not in read_page(run_dir)


def test_iterations_without_a_finite_loss_are_counted_but_not_drawn(run_dir: Path) -> None:
    path = run_dir / "checkpoints" / "metrics.jsonl"
    records = complete_records(path)
    records[3].update(loss=None, grad_norm=None)
    records[-1].update(grad_norm=None)
    write_jsonl(path, records)
    run_report(run_config(run_dir))
    page = read_page(run_dir)
    assert "199 iterations" in page
    assert "not finite and no weight changed: 2 iterations." in page
    assert not BAD.search(re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL))


def test_a_result_on_one_problem_is_inconclusive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    publish_evaluation(run_dir, *evaluate(*CASES["two problems"]))
    run_report(run_config(run_dir))
    shown = read_scores(run_dir)
    assert shown["measured"].startswith("Measured on 1 problem of")
    assert shown["result"].endswith("on one problem, from which nothing follows.")
    assert {claim["status"] for claim in shown["claims"]} == {"unclear"}
    assert "per cent of 1 problem x 5 programs" in capsys.readouterr().out
