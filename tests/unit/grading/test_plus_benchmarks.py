"""Tests that canonical solutions of the published HumanEval, HumanEval+ and MBPP+ pass, however they are written."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.grading.grade_file import program_of
from megatron_ssd.grading.pool import Grader, Submission
from megatron_ssd.grading.references import FLAWED
from megatron_ssd.problems.assert_scripts import read_assert_scripts
from megatron_ssd.schema import Problem
from tests.helpers.paths import DATA, HUMANEVAL, needs

PLUS = DATA / "evalplus"
FILES = {
    "humaneval": ("humaneval", HUMANEVAL, set[str]()),
    "humaneval_plus": ("humaneval_plus", PLUS / "HumanEvalPlus.jsonl.gz", set[str]()),
    # The script of this row calls a function with its arguments in the wrong order.
    "humaneval_plus on the Hub": ("humaneval_plus", PLUS / "HumanEvalPlus-OriginFmt.jsonl.gz", {"HumanEval/32"}),
    "mbpp_plus": ("mbpp_plus", PLUS / "MbppPlus.jsonl.gz", set[str]()),
    "mbpp_plus on the Hub": ("mbpp_plus", PLUS / "MbppPlus-OriginFmt.jsonl.gz", set[str]()),
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of references for this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def texts(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The canonical solution as each kind of sample: its key and its text."""
    if "code" in row:
        whole = row["code"]
    elif row["task_id"].startswith("Mbpp/"):  # its solutions are whole functions
        whole = row["canonical_solution"]
    else:
        yield "completion", row["canonical_solution"]
        whole = row["prompt"] + row["canonical_solution"]
    yield "completion", whole
    yield "code", whole
    yield "response", f"Here it is.\n```python\n{whole}\n```\nIt uses a loop."


def check_canonical_solutions(name: str, folder: Path, *, every: int, workers: int | None) -> None:
    format_, path, flawed = FILES[name]
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()][::every]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = read_assert_scripts(format_, folder / "rows.jsonl")
    with Grader(problems, SandboxConfig(workers=workers)) as grader:
        verdicts = grader.grade_programs(submissions(problems, rows), folder / "verdicts.jsonl")
    assert {verdict.problem_id for verdict in verdicts if verdict.detail.startswith(FLAWED)} == flawed & {
        problem.id for problem in problems
    }
    failed = [verdict for verdict in verdicts if not verdict.passed and verdict.problem_id not in flawed]
    assert failed == []
    if not path.stem.count("-"):
        assert {verdict.by_test for verdict in verdicts} == {"." * len(problems[0].tests)}


def submissions(problems: list[Problem], rows: list[dict[str, Any]]) -> Iterator[Submission]:
    for problem, row in zip(problems, rows, strict=True):
        for index, (key, text) in enumerate(texts(row)):
            source = program_of(key, text, problem).program
            yield Submission(problem_id=problem.id, sample_index=index, source=source)


@needs(*(path for _, path, _ in FILES.values()))
@pytest.mark.parametrize("name", FILES)
def test_canonical_solutions_of_some_rows_pass(tmp_path: Path, name: str):
    check_canonical_solutions(name, tmp_path, every=32, workers=2)


@pytest.mark.slow
@needs(*(path for _, path, _ in FILES.values()))
@pytest.mark.parametrize("name", FILES)
def test_canonical_solutions_pass_beside_each_other(tmp_path: Path, name: str):
    """With eight programs at a time, so most of them wait for a core."""
    check_canonical_solutions(name, tmp_path, every=1, workers=8)
