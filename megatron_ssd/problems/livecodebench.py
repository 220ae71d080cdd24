"""Reads LiveCodeBench's problems from ``code_generation_lite``.

Hidden tests are decoded only for problems inside the window of contest dates, because all tests of a release take
gigabytes.
"""

from __future__ import annotations

import base64
import datetime
import io
import json
import pickle
import re
import struct
import zlib
from typing import Any, NamedTuple, NoReturn, Self

from megatron_ssd.config.problems import BenchmarkSetConfig
from megatron_ssd.errors import ConfigError, UserError
from megatron_ssd.problems.table import Row, Table, is_null, open_table
from megatron_ssd.schema import Problem, ProblemForm, TestCase

COLUMNS = (
    "question_title", "question_content", "platform", "question_id", "contest_id", "contest_date", "starter_code",
    "difficulty", "public_test_cases", "private_test_cases", "metadata",
)  # fmt: skip
_TEXTS = ("question_title", "question_content", "starter_code")
# Raised by JSON, base64, zlib and unpickling for bytes that are not valid.
_DECODING_ERRORS = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError, MemoryError, RecursionError,
    zlib.error, struct.error, pickle.UnpicklingError,
)  # fmt: skip
_NUMBER, _COMPACT_DATE = re.compile(r"\d+(\.\d*)?(e\+\d\d)?"), re.compile(r"(19|20)\d{6}")
_MOST_SECONDS = 1e11  # the year 5138; a larger number counts milliseconds, or still smaller units
_FIRST_YEAR = 2000
_DOWNLOAD_AGAIN = "download the file again"
_TEST_TYPE = {"stdin": "stdin", "function": "functional"}


class BenchmarkKeys(NamedTuple):
    """The configuration keys of the file and of the window, for messages."""

    path: str
    start_date: str
    end_date: str

    @classmethod
    def of(cls, section: str) -> Self:
        """The keys in ``section``."""
        return cls(*(f"{section}.{name}" for name in cls._fields))


def benchmark_table(config: BenchmarkSetConfig, keys: BenchmarkKeys) -> Table:
    """The benchmark's files, local or on the Hub. Raises ``UserError`` if there are none."""
    fix = f"{keys.path} needs LiveCodeBench's code_generation_lite: {', '.join(COLUMNS)}"
    return open_table(str(config.path), key=keys.path, columns_fix=fix, revision=config.revision)


def read_benchmark(config: BenchmarkSetConfig, keys: BenchmarkKeys) -> list[Problem]:
    """The problems of the window in file order, at most ``config.limit`` of them, with public and private tests.

    Raises:
        UserError: nothing is at ``config.path``; a line, column, date or test cannot be read (the message has file and
            line); an id is repeated; or the window contains no problem.
    """
    first, last = _date(config.start_date, keys.start_date), _date(config.end_date, keys.end_date)
    problems: dict[str, Problem] = {}
    seen: list[datetime.date] = []
    for row in benchmark_table(config, keys).rows(COLUMNS):
        date = _contest_date(row)
        seen.append(date)
        if (first and date < first) or (last and date > last) or len(problems) == config.limit:
            continue
        problem = _problem(row, date)
        if problem.id in problems:
            raise row.error("question_id", "is repeated", fix="name each file once")
        problems[problem.id] = problem
    if not problems:
        raise _empty_window(config, keys, seen)
    return list(problems.values())


class _TextUnpickler(pickle.Unpickler):
    """Refuses every global, so loading a pickle runs no code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and test cases are text alone")


def _problem(row: Row, date: datetime.date) -> Problem:
    values, function_name = row.values, _function_name(row)
    form: ProblemForm = "function" if function_name else "stdin"
    title, statement, starter_code = (row.optional_text(column, fix=_DOWNLOAD_AGAIN) for column in _TEXTS)
    if not statement.strip() or is_null(values["question_id"]):
        raise row.error("question_id" if statement.strip() else "question_content", "is empty", fix=_DOWNLOAD_AGAIN)
    tests = [test for column in ("public_test_cases", "private_test_cases") for test in decode_tests(row, column, form)]
    if not tests:
        raise row.error("question_id", "has no test, so no program could fail", fix="remove that row")
    return Problem(
        id=str(values["question_id"]),
        source="livecodebench",
        title=title,
        statement=statement,
        form=form,
        starter_code=starter_code,
        function_name=function_name,
        difficulty=None if is_null(values["difficulty"]) else values["difficulty"],
        date=date.isoformat(),
        tests=tuple(tests),
        metadata={name: None if is_null(values[name]) else values[name] for name in ("platform", "contest_id")},
    )


def decode_tests(row: Row, column: str, form: ProblemForm) -> list[TestCase]:
    """Test cases of one column: JSON text, or base64 of zlib of a pickle of that text.

    The pickle comes from the network and is read by an unpickler that can build only plain values.

    Raises:
        UserError: the text cannot be decoded, or a test does not have ``form``, the form of the problem.
    """
    try:
        rows = json.loads(_as_json(row.values[column]))
        kinds = {one["testtype"] for one in rows}
        tests = [TestCase(input=_checked(one["input"]), output=_checked(one["output"])) for one in rows]
    except _DECODING_ERRORS as error:
        rule = f"does not hold test cases ({type(error).__name__}: {error})"
        raise row.error(column, rule, fix=_DOWNLOAD_AGAIN) from None
    if kinds - {_TEST_TYPE[form]}:
        rule = f"holds {', '.join(sorted(map(str, kinds)))} tests, and metadata.func_name makes it a {form} problem"
        raise row.error(column, rule, fix="fix metadata.func_name or the tests")
    return tests


def _checked(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"input and output are text, and one is a {type(value).__name__}")
    return value


def _as_json(text: str) -> str:
    """``text`` if it is JSON, else the JSON that is packed in it. Raises ``_DECODING_ERRORS``."""
    try:
        json.loads(text)
    except json.JSONDecodeError:
        value: Any = _TextUnpickler(io.BytesIO(zlib.decompress(base64.b64decode(text, validate=True)))).load()
        if not isinstance(value, str):
            raise TypeError(f"the pickle holds a {type(value).__name__} instead of text") from None
        return value
    return text


def _function_name(row: Row) -> str | None:
    try:
        text = row.values["metadata"]
        name = None if is_null(text) else json.loads(text).get("func_name")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"func_name is a {type(name).__name__}")
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise row.error("metadata", f"is not a JSON object ({error})", fix=_DOWNLOAD_AGAIN) from None
    return name


def _contest_date(row: Row) -> datetime.date:
    try:
        return as_date(row.values["contest_date"])
    except (TypeError, ValueError, ArithmeticError, OSError):
        rule = "is not an ISO date, and is not a time since 1970 in seconds or milliseconds"
        raise row.error("contest_date", rule, fix=_DOWNLOAD_AGAIN) from None


def as_date(value: Any) -> datetime.date:
    """The day of a date, a time, ISO text, or a number of seconds or smaller units since 1970.

    Numbers, and times with a zone, are days of UTC. The size of a number tells its unit. A number before the year 2000
    is a count of something else.

    Raises:
        TypeError, ValueError, ArithmeticError, OSError: ``value`` is none of them.
    """
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        text = str(value).strip()
        if not _NUMBER.fullmatch(text) or _COMPACT_DATE.fullmatch(text):
            return as_date(datetime.datetime.fromisoformat(text))
        seconds = float(text)
        while seconds >= _MOST_SECONDS:
            seconds /= 1000
        found = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        if found.year < _FIRST_YEAR:
            raise ValueError(f"{found} is before {_FIRST_YEAR}")
        return found.date()
    if isinstance(value, datetime.datetime):
        return (value if value.tzinfo is None else value.astimezone(datetime.UTC)).date()
    if isinstance(value, datetime.date):
        return value
    raise TypeError(f"{type(value).__name__} is not a date")


def _date(text: str | None, key: str) -> datetime.date | None:
    try:
        return None if text is None else datetime.date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{key} = {text}", rule="is not an ISO date", fix="write it as 2025-02-01") from None


def _empty_window(config: BenchmarkSetConfig, keys: BenchmarkKeys, seen: list[datetime.date]) -> UserError:
    window = f"{keys.start_date} = {config.start_date}, {keys.end_date} = {config.end_date}"
    if not seen:
        return UserError(f"{keys.path} = {config.path}", rule="contains no problem", fix=_DOWNLOAD_AGAIN)
    return UserError(
        window,
        rule=f"no problem is in that window; the {len(seen)} of {config.path} are from {min(seen)} to {max(seen)}",
        fix="widen the window or name a newer file",
    )
