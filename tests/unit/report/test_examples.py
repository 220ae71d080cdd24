"""Tests for the example programs in ``report.html``."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ssd.evaluation.problem_file import PROBLEMS_FILE
from megatron_ssd.report.content import Example, example_of
from megatron_ssd.report.render import run_report
from tests.helpers.evaluated_run import evaluate, publish_evaluation
from tests.helpers.measured import graded_problems
from tests.helpers.problems_run import NUM_TESTS, RUN, problem, read, tries, write_evaluation
from tests.helpers.report_run import read_page, run_config


def example(folder: Path, form: str = "stdin") -> Example:
    """The example of a problem that the base solves and SSD does not."""
    run = [(problem("abc", "easy", form=form), tries("passed"), tries("wrong_answer"))]
    return example_of(read(folder, write_evaluation(folder, run)).examples[0])


@pytest.mark.parametrize(("form", "text"), [("stdin", "input"), ("checks", "check")])
def test_the_first_failing_test_is_shown_with_its_input(tmp_path: Path, form: str, text: str) -> None:
    base, ssd = example(tmp_path, form).programs
    assert base.failed_test is None
    given = problem("abc", "easy").tests[2].input
    assert len(given) > 300
    assert ssd.failed_test is not None
    title, shown = ssd.failed_test
    assert title == f"{text} of test 3 of {NUM_TESTS}"
    head, gap, tail = shown.split("\n")
    assert given.startswith(head)
    assert given.endswith(tail)
    assert len(head) + len(tail) == 300
    assert gap == f"\N{HORIZONTAL ELLIPSIS} {len(given) - 300} characters \N{HORIZONTAL ELLIPSIS}"


def test_an_evaluation_without_the_texts_of_tests_shows_no_input(tmp_path: Path) -> None:
    pages = read(tmp_path, write_evaluation(tmp_path, RUN, with_problems=False))
    assert not (tmp_path / PROBLEMS_FILE).exists()
    assert [program.failed_test for one in pages.examples for program in example_of(one).programs] == [None] * 6


def test_the_page_shows_the_escaped_input(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    publish_evaluation(run_dir, *evaluate(graded_problems(3)))
    path = run_dir / "eval" / "minicode" / PROBLEMS_FILE
    path.write_text(path.read_text().replace('"input": "1"', '"input": "<u>1</u>"'))
    for verdicts in (run_dir / "eval" / "minicode" / "verdicts" / "ssd").iterdir():
        text = verdicts.read_text().replace('"status": "passed"', '"status": "wrong_answer"')
        verdicts.write_text(text.replace('"failed_test": null', '"failed_test": 0'))
    run_report(run_config(run_dir))
    page = read_page(run_dir)
    assert "input of test 1 of 3, the first that failed" in page
    assert "&lt;u&gt;1&lt;/u&gt;" in page
    assert "<u>1</u>" not in page
