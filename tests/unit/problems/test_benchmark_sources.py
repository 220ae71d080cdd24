"""Tests how LiveCodeBench's files are read."""

from __future__ import annotations

import base64
import datetime
import json
import os
import zlib
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from megatron_ssd.errors import UserError
from megatron_ssd.problems.livecodebench import decode_tests
from megatron_ssd.problems.table import Row
from megatron_ssd.schema import TestCase
from tests.helpers.errors import one_line_error
from tests.helpers.jsonl import write_jsonl
from tests.helpers.lcb_rows import benchmark, encode_tests, lcb_row
from tests.helpers.paths import CODEFORCES, needs


@pytest.mark.parametrize("encode", [lambda text: text, encode_tests], ids=["json", "pickle"])
def test_both_encodings_of_hidden_tests_give_the_same_tests(encode: Any) -> None:
    text = json.dumps([{"input": "1\n", "output": "é\n", "testtype": "stdin"}])
    assert decode_tests(Row("f:1", {"tests": encode(text)}), "tests", "stdin") == [TestCase(input="1\n", output="é\n")]


class _Attack:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (encode_tests(_Attack()), "names posix.mkdir"),
        (encode_tests(["not", "text"]), "holds a list instead of text"),
        (encode_tests("[{]"), "JSONDecodeError"),
        ("@@@", "does not hold test cases"),
        (base64.b64encode(b"no zlib").decode(), "does not hold test cases"),
        (base64.b64encode(zlib.compress(b"\x80\x04")).decode(), "does not hold test cases"),
        ('[{"input": "1"}]', "KeyError"),
        ('[{"input": "1", "output": "2", "testtype": "functional"}]', "functional tests"),
    ],
)
def test_invalid_hidden_tests_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        decode_tests(Row("file:3", {"private_test_cases": text}), "private_test_cases", "stdin")
    assert not (tmp_path / "attacked").exists()


def test_function_problems_have_a_function_name_and_tests_in_order(tmp_path: Path) -> None:
    tests = [{"input": f"{n}\n[1]", "output": "2", "testtype": "functional"} for n in range(3)]
    row = lcb_row(
        1,
        starter_code="class Solution:",
        metadata='{"func_name": "solve"}',
        public_test_cases=json.dumps(tests[:1]),
        private_test_cases=encode_tests(json.dumps(tests[1:])),
    )
    (problem,) = benchmark(write_jsonl(tmp_path / "test.jsonl", [row]))
    assert (problem.form, problem.function_name, problem.date) == ("function", "solve", "2025-02-03")
    assert [test.input for test in problem.tests] == ["0\n[1]", "1\n[1]", "2\n[1]"]


def test_the_window_includes_both_ends_and_tests_outside_it_are_not_decoded(tmp_path: Path) -> None:
    days = ["2025-01-31", "2025-02-01", "2025-02-15", "2025-05-31", "2025-06-01"]
    rows = [lcb_row(number, date=day) for number, day in enumerate(days)]
    rows[0]["private_test_cases"] = "unreadable, and outside the window"
    path = write_jsonl(tmp_path / "test.jsonl", rows)
    found = benchmark(path, start_date="2025-02-01", end_date="2025-05-31")
    assert [problem.date for problem in found] == days[1:4]
    assert [problem.date for problem in benchmark(path, start_date="2025-02-01", limit=2)] == days[1:3]


def test_a_folder_of_releases_is_read_in_order(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test2.jsonl", [lcb_row(2)])
    write_jsonl(tmp_path / "test.jsonl", [lcb_row(1)])
    assert [problem.id for problem in benchmark(tmp_path)] == ["abc_1", "abc_2"]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([lcb_row(1)], {"start_date": "2030-01-01"}, "no problem is in that window.*2025-02-03 to 2025-02-03"),
        ([lcb_row(1)], {"end_date": "May"}, "benchmark.sets.livecodebench.end_date = May: is not an ISO date"),
        ([lcb_row(1), lcb_row(1)], {}, r"test.jsonl:2: question_id = 'abc_1': is repeated"),
        (
            [{"question_id": "x"}],
            {},
            r"test.jsonl:1 .*has no column question_title.*benchmark.sets.livecodebench.path needs LiveCodeBench",
        ),
        ([lcb_row(1), lcb_row(2, metadata="{")], {}, r"test.jsonl:2: metadata = .*: is not a JSON object"),
        ([lcb_row(1, contest_date="soon")], {}, r"test.jsonl:1: contest_date = 'soon'"),
        ([], {}, r"test.jsonl: is empty"),
    ],
)
def test_invalid_benchmarks_are_one_line(
    tmp_path: Path, rows: list[dict[str, Any]], settings: dict[str, Any], message: str
) -> None:
    with one_line_error(message):
        benchmark(write_jsonl(tmp_path / "test.jsonl", rows), **settings)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "test.jsonl", [lcb_row(1), lcb_row(2)])
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=r"test.jsonl:2"):
        benchmark(path)


@needs(CODEFORCES)
def test_a_real_benchmark_file_is_read_completely() -> None:
    problems = benchmark(CODEFORCES)
    assert len(problems) == 408
    assert all(problem.tests for problem in problems)


_DAY = datetime.datetime(2025, 2, 1, tzinfo=datetime.UTC)
_EPOCH = int(_DAY.timestamp())


@pytest.mark.parametrize(
    "date",
    [
        "2025-02-01", "2025-02-01T00:00:00", "2025-02-01 23:59:59.999", "2025-02-01T00:00:00Z", "20250201", 20250201,
        "2025-02-01T00:00:00+00:00", "2025-01-31T19:00:00-05:00", _EPOCH, _EPOCH * 1000, _EPOCH * 10**6, _EPOCH * 10**9,
        float(_EPOCH * 1000), str(_EPOCH), str(_EPOCH * 1000), _EPOCH + 86_399,
    ],
)  # fmt: skip
def test_a_contest_date_may_have_any_form(tmp_path: Path, date: Any) -> None:
    path = write_jsonl(tmp_path / "test.jsonl", [lcb_row(1, contest_date=date), lcb_row(2, "2025-01-31")])
    for window in ({"start_date": "2025-02-01"}, {"start_date": "2025-02-01", "end_date": "2025-02-01"}):
        assert [(problem.id, problem.date) for problem in benchmark(path, **window)] == [("abc_1", "2025-02-01")]


@pytest.mark.parametrize(
    "type_",
    [pyarrow.date32(), pyarrow.date64(), *(pyarrow.timestamp(unit) for unit in ("s", "ms", "us", "ns")),
     pyarrow.timestamp("ms", tz="UTC"), pyarrow.timestamp("us", tz="America/New_York")],
    ids=str,
)  # fmt: skip
def test_a_contest_date_may_have_any_type_of_parquet(tmp_path: Path, type_: pyarrow.DataType) -> None:
    rows = [lcb_row(1, contest_date=_DAY), lcb_row(2, contest_date=_DAY - datetime.timedelta(days=1))]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    days = pyarrow.array(columns.pop("contest_date"), pyarrow.timestamp("s", tz="UTC"))
    naive = days.cast(pyarrow.timestamp("s")) if getattr(type_, "tz", None) is None else days
    table = pyarrow.table({**columns, "contest_date": naive.cast(type_)})
    pyarrow.parquet.write_table(table, tmp_path / "test.parquet")
    (problem,) = benchmark(tmp_path / "test.parquet", start_date="2025-02-01")
    assert (problem.id, problem.date) == ("abc_1", "2025-02-01")
