"""LiveCodeBench's ``code_generation_lite``, cut to a window of contest dates.

Only problems inside the window have their hidden tests decoded: those of a whole release take gigabytes.
"""

from __future__ import annotations

import datetime
import json
from typing import Any, NamedTuple

from megatron_ssd.config.problems import BenchmarkConfig
from megatron_ssd.errors import ConfigError, UserError
from megatron_ssd.problems.hidden_tests import decode_tests
from megatron_ssd.problems.table import Row, Table, open_table
from megatron_ssd.schema import Problem, ProblemForm

COLUMNS = (
    "question_title", "question_content", "platform", "question_id", "contest_id", "contest_date", "starter_code",
    "difficulty", "public_test_cases", "private_test_cases", "metadata",
)  # fmt: skip
_TEXTS = ("question_title", "question_content", "starter_code")


class BenchmarkKeys(NamedTuple):
    """What the user calls the file and the window's ends, for messages."""

    path: str = "benchmark.path"
    start_date: str = "benchmark.start_date"
    end_date: str = "benchmark.end_date"


RUN_KEYS = BenchmarkKeys()


def benchmark_table(config: BenchmarkConfig, keys: BenchmarkKeys = RUN_KEYS) -> Table:
    """The benchmark's files, here or on the Hub. Raises ``UserError`` where there are none."""
    fix = f"{keys.path} wants LiveCodeBench's code_generation_lite: {', '.join(COLUMNS)}"
    return open_table(str(config.path), key=keys.path, columns_fix=fix)


def read_benchmark(config: BenchmarkConfig, keys: BenchmarkKeys = RUN_KEYS) -> list[Problem]:
    """The problems of the window in file order, at most ``config.limit`` of them, with public and private tests.

    Raises:
        UserError: nothing is at ``config.path``; a line, column, date or test cannot be read (file and line are
            named); an id comes twice; or no problem lies in the window.
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
            raise UserError(
                f"{row.where}: question_id {problem.id!r}", rule="comes a second time", fix="name each file once"
            )
        problems[problem.id] = problem
    if not problems:
        raise _empty_window(config, keys, seen)
    return list(problems.values())


def _problem(row: Row, date: datetime.date) -> Problem:
    values = row.values
    function_name = _function_name(row)
    form: ProblemForm = "function" if function_name else "stdin"
    title, statement, starter_code = (_text(row, column) for column in _TEXTS)
    if not statement.strip() or values["question_id"] in (None, ""):
        column = "question_id" if statement.strip() else "question_content"
        raise UserError(f"{row.where}: {column}", rule="is empty", fix="download the file again")
    tests = [
        test
        for column in ("public_test_cases", "private_test_cases")
        for test in decode_tests(values[column], where=f"{row.where}: {column}", form=form)
    ]
    if not tests:
        raise UserError(
            f"{row.where}: {values['question_id']}", rule="has no test, so nothing could fail", fix="remove that row"
        )
    return Problem(
        id=str(values["question_id"]),
        source="livecodebench",
        title=title,
        statement=statement,
        form=form,
        starter_code=starter_code,
        function_name=function_name,
        difficulty=values["difficulty"],
        date=date.isoformat(),
        tests=tuple(tests),
        metadata={"platform": values["platform"], "contest_id": values["contest_id"]},
    )


def _text(row: Row, column: str) -> str:
    value: Any = row.values[column]
    if value is not None and not isinstance(value, str):
        raise UserError(
            f"{row.where}: {column} = {str(value)[:60]!r}",
            rule=f"must be text and is a {type(value).__name__}",
            fix="download the file again",
        )
    return value or ""


def _function_name(row: Row) -> str | None:
    try:
        metadata = json.loads(row.values["metadata"] or "{}")
        name = metadata.get("func_name")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"func_name is a {type(name).__name__}")
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{row.where}: metadata", rule=f"is not JSON of an object ({error})", fix="download the file again"
        ) from None
    return name


def _contest_date(row: Row) -> datetime.date:
    value = row.values["contest_date"]
    try:
        return value.date() if isinstance(value, datetime.datetime) else datetime.datetime.fromisoformat(value).date()
    except (TypeError, ValueError):
        raise UserError(
            f"{row.where}: contest_date {value!r}", rule="is no ISO date", fix="download the file again"
        ) from None


def _date(text: str | None, key: str) -> datetime.date | None:
    try:
        return None if text is None else datetime.date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{key} = {text}", rule="is no ISO date", fix="write it as 2025-02-01") from None


def _empty_window(config: BenchmarkConfig, keys: BenchmarkKeys, seen: list[datetime.date]) -> UserError:
    window = f"{keys.start_date} = {config.start_date}, {keys.end_date} = {config.end_date}"
    if not seen:
        return UserError(f"{keys.path} = {config.path}", rule="holds no problem", fix="download the file again")
    return UserError(
        window,
        rule=f"no problem lies in that window; the {len(seen)} of {config.path} are from {min(seen)} to {max(seen)}",
        fix="widen the window or name a newer file",
    )
