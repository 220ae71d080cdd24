"""LiveCodeBench's ``code_generation_lite`` from its JSONL files, cut to a window of contest dates.

Only problems inside the window have their hidden tests decoded: those of a whole release take gigabytes.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.jsonl import iter_jsonl
from megatron_ssd.config.problems import BenchmarkConfig
from megatron_ssd.errors import ConfigError, UserError
from megatron_ssd.problems.hidden_tests import decode_tests
from megatron_ssd.problems.location import find_files, hub_error
from megatron_ssd.schema import Problem, ProblemForm

COLUMNS = (
    "question_title", "question_content", "platform", "question_id", "contest_id", "contest_date", "starter_code",
    "difficulty", "public_test_cases", "private_test_cases", "metadata",
)  # fmt: skip
_KEY = "benchmark.path"


def read_benchmark(config: BenchmarkConfig) -> list[Problem]:
    """The problems of the window in file order, at most ``config.limit`` of them, with public and private tests.

    Raises:
        UserError: nothing is at ``config.path``; a line, column, date or test cannot be read (file and line are
            named); an id comes twice; or no problem lies in the window.
    """
    first, last = _date(config.start_date, "start_date"), _date(config.end_date, "end_date")
    problems: dict[str, Problem] = {}
    seen: list[datetime.date] = []
    for where, row in _rows(_files(str(config.path))):
        date = _contest_date(where, row)
        seen.append(date)
        if (first and date < first) or (last and date > last) or len(problems) == config.limit:
            continue
        problem = _problem(where, row, date)
        if problem.id in problems:
            raise UserError(
                f"{where}: question_id {problem.id!r}", rule="comes a second time", fix="name each file once"
            )
        problems[problem.id] = problem
    if not problems:
        raise _empty_window(config, seen)
    return list(problems.values())


def _files(path: str) -> list[Path]:
    local = find_files(path, key=_KEY, ending=".jsonl")
    if local is not None:
        return local
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        folder = snapshot_download(path, repo_type="dataset", allow_patterns="*.jsonl")
    except (OSError, ValueError, HTTPError) as error:
        raise hub_error(path, key=_KEY, error=error) from error
    return sorted(Path(folder).rglob("*.jsonl"))


def _rows(files: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with its ``file:line``."""
    for file in files:
        for number, row in enumerate(iter_jsonl(file), start=1):
            missing = [name for name in COLUMNS if name not in row]
            if missing:
                raise UserError(
                    f"{file}:{number}",
                    rule=f"has no column {', '.join(missing)}",
                    fix=f"{_KEY} wants LiveCodeBench's code_generation_lite: {', '.join(COLUMNS)}",
                )
            yield f"{file}:{number}", row


def _problem(where: str, row: dict[str, Any], date: datetime.date) -> Problem:
    try:
        metadata = json.loads(row["metadata"] or "{}")
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: metadata", rule=f"is not JSON ({error})", fix="download the file again") from None
    function_name = metadata.get("func_name")
    form: ProblemForm = "function" if function_name else "stdin"
    tests = [
        test
        for column in ("public_test_cases", "private_test_cases")
        for test in decode_tests(row[column], where=f"{where}: {column}", form=form)
    ]
    return Problem(
        id=str(row["question_id"]),
        source="livecodebench",
        title=row["question_title"],
        statement=row["question_content"],
        form=form,
        starter_code=row["starter_code"],
        function_name=function_name,
        difficulty=row["difficulty"],
        date=date.isoformat(),
        tests=tuple(tests),
        metadata={"platform": row["platform"], "contest_id": row["contest_id"]},
    )


def _contest_date(where: str, row: dict[str, Any]) -> datetime.date:
    try:
        return datetime.datetime.fromisoformat(row["contest_date"]).date()
    except (TypeError, ValueError):
        raise UserError(
            f"{where}: contest_date {row['contest_date']!r}", rule="is no ISO date", fix="download the file again"
        ) from None


def _date(text: str | None, key: str) -> datetime.date | None:
    try:
        return None if text is None else datetime.date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"benchmark.{key} = {text}", rule="is no ISO date", fix="write it as 2025-02-01") from None


def _empty_window(config: BenchmarkConfig, seen: list[datetime.date]) -> UserError:
    window = f"benchmark.start_date = {config.start_date}, benchmark.end_date = {config.end_date}"
    if not seen:
        return UserError(f"{_KEY} = {config.path}", rule="holds no problem", fix="download the file again")
    return UserError(
        window,
        rule=f"no problem lies in that window; the {len(seen)} of {config.path} are from {min(seen)} to {max(seen)}",
        fix="widen the window or name a newer file",
    )
