"""Tests the error messages for invalid rows of LiveCodeBench."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.problems.livecodebench import COLUMNS
from tests.helpers.errors import one_line_error
from tests.helpers.jsonl import write_jsonl
from tests.helpers.lcb_rows import benchmark, encode_tests, lcb_row

TESTS = json.dumps([{"input": "1\n", "output": "2\n", "testtype": "stdin"}])


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _tests(**changes: Any) -> str:
    return json.dumps([{"input": "1\n", "output": "2\n", "testtype": "stdin"} | changes])


# Name -> (column, value, the message after file, row and column).
VALUES: dict[str, tuple[str, Any, str]] = {
    "tests cut": ("private_test_cases", encode_tests(TESTS)[:-9], "hold test cases"),
    "tests not base64": ("private_test_cases", "%%%", "hold test cases"),
    "tests not ASCII": ("private_test_cases", "é", "hold test cases"),
    "tests not zlib": ("private_test_cases", _encoded(b"no zlib"), "hold test cases"),
    "tests zlib cut": ("private_test_cases", _encoded(zlib.compress(pickle.dumps(TESTS))[:-5]), "hold test cases"),
    "tests not pickle": ("private_test_cases", _encoded(zlib.compress(b"no pickle")), "hold test cases"),
    "tests pickle cut": ("private_test_cases", _encoded(zlib.compress(pickle.dumps(TESTS)[:-5])), "hold test cases"),
    "tests pickle without content": ("private_test_cases", _encoded(zlib.compress(b".")), "hold test cases"),
    "tests pickle that calls": ("private_test_cases", _encoded(zlib.compress(b"cos\nsystem\n.")), "os.system"),
    "tests pickle of a number": ("private_test_cases", encode_tests(7), "holds a int instead of text"),
    "tests pickle of broken JSON": ("private_test_cases", encode_tests("[{"), "hold test cases"),
    "tests null": ("private_test_cases", None, "hold test cases"),
    "tests a number": ("public_test_cases", 7, "hold test cases"),
    "tests a list": ("public_test_cases", [], "hold test cases"),
    "tests an object": ("public_test_cases", "{}", "has no test"),
    "tests of a number": ("public_test_cases", "7", "hold test cases"),
    "tests of numbers": ("public_test_cases", "[1]", "hold test cases"),
    "tests nested deep": ("public_test_cases", "[" * 100_000, "hold test cases"),
    "tests an empty list": ("public_test_cases", "[]", "has no test"),
    "test without output": ("public_test_cases", '[{"input": "1", "testtype": "stdin"}]', "KeyError: 'output'"),
    "test without type": ("public_test_cases", '[{"input": "1", "output": "2"}]', "KeyError: 'testtype'"),
    "test input a number": ("public_test_cases", _tests(input=1), "input and output are text, and one is a int"),
    "test output null": ("public_test_cases", _tests(output=None), "input and output are text, and one is a NoneType"),
    "test of another type": ("public_test_cases", _tests(testtype="functional"), "holds functional tests"),
    "test of type null": ("public_test_cases", _tests(testtype=None), "holds None tests"),
    "test type a list": ("public_test_cases", _tests(testtype=[]), "hold test cases"),
    "date null": ("contest_date", None, "is not an ISO date"),
    "date a word": ("contest_date", "soon", "is not an ISO date"),
    "date that does not exist": ("contest_date", "2025-02-30T00:00:00", "is not an ISO date"),
    "date in another order": ("contest_date", "03.02.2025", "is not an ISO date"),
    "date a number of days": ("contest_date", 20122, "is not an ISO date"),
    "date true": ("contest_date", True, "is not an ISO date"),
    "date infinite": ("contest_date", float("inf"), "is not an ISO date"),
    "date not a number": ("contest_date", float("nan"), "is not an ISO date"),
    "date a list": ("contest_date", ["2025-02-03"], "is not an ISO date"),
    "metadata cut": ("metadata", '{"func_name": "f', "is not a JSON object"),
    "metadata a list": ("metadata", "[1]", "is not a JSON object"),
    "metadata an object": ("metadata", {"func_name": "f"}, "is not a JSON object"),
    "function name a number": ("metadata", '{"func_name": 7}', "is not a JSON object"),
    "metadata nested deep": ("metadata", "[" * 100_000, "is not a JSON object"),
    "text null": ("question_content", None, "is empty"),
    "text blank": ("question_content", " \n", "is empty"),
    "text a list": ("question_content", ["Say ok."], "must be text and is a list"),
    "starter code a number": ("starter_code", 7, "must be text and is a int"),
    "title an object": ("question_title", {}, "must be text and is a dict"),
    "id null": ("question_id", None, "is empty"),
    "id empty": ("question_id", "", "is empty"),
    "id not a number": ("question_id", float("nan"), "is empty"),
    "text a word for null": ("question_content", "nan", "is empty"),
    "id of an earlier row": ("question_id", "abc_1", "is repeated"),
}  # fmt: skip


def _refused(path: Path, message: str, **settings: Any) -> None:
    with one_line_error(message):
        benchmark(path, **settings)


@pytest.mark.parametrize("kind", VALUES)
def test_a_broken_value_is_named_with_its_row(tmp_path: Path, kind: str) -> None:
    column, value, message = VALUES[kind]
    path = write_jsonl(tmp_path / "test.jsonl", [lcb_row(1), lcb_row(2) | {column: value}])
    _refused(path, rf"test\.jsonl:2.*{message}")


@pytest.mark.parametrize("kind", [kind for kind in VALUES if kind.startswith(("test", "metadata", "text"))])
def test_rows_outside_the_window_are_not_decoded(tmp_path: Path, kind: str) -> None:
    column, value, _ = VALUES[kind]
    path = write_jsonl(tmp_path / "test.jsonl", [lcb_row(1), lcb_row(2, date="2024-01-01") | {column: value}])
    assert [problem.id for problem in benchmark(path, start_date="2025-01-01")] == ["abc_1"]


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    rows = [lcb_row(1), {name: value for name, value in lcb_row(2).items() if name != column}]
    _refused(
        write_jsonl(tmp_path / "test.jsonl", rows),
        rf"test\.jsonl:2 .*has no column {column}; benchmark.sets.livecodebench\.path needs",
    )


@pytest.mark.parametrize("key", ["start_date", "end_date"])
@pytest.mark.parametrize("date", ["", "May", "2025-13-01", "2025-02-01T00:00:00+25:00"])
def test_a_window_that_is_not_a_date_is_named(tmp_path: Path, key: str, date: str) -> None:
    _refused(
        write_jsonl(tmp_path / "test.jsonl", [lcb_row(1)]),
        rf"livecodebench\.{key} = .*is not an ISO date",
        **{key: date},
    )


@pytest.mark.parametrize("null", [None, float("nan"), "None", "nan", "NaN", "null", "<NA>", ""])
def test_null_in_an_optional_column_is_empty_text(tmp_path: Path, null: Any) -> None:
    row = lcb_row(1) | dict.fromkeys(("starter_code", "question_title", "metadata", "difficulty"), null)
    (problem,) = benchmark(write_jsonl(tmp_path / "test.jsonl", [row]))
    assert (problem.form, problem.starter_code, problem.title, problem.difficulty) == ("stdin", "", "", None)
