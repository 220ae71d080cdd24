"""Helpers for reading benchmarks whose tests are assert scripts."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from megatron_ssd.errors import UserError
from megatron_ssd.problems.table import Row, Table, open_table
from megatron_ssd.schema import Problem, TestCase


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Rows of a local file. Raises ``UserError`` if it is missing, or a row cannot be read or lacks a column."""
    return _table(path, f"its columns must be {', '.join(columns)}; is it of another format?").rows(columns)


def first_columns(path: Path) -> set[str]:
    """Columns of the first row of a local file; none if it has no row. Raises ``UserError`` as ``read_rows`` does."""
    return set(next((row.values for row in _table(path, "").rows(None)), ()))


def unique(problems: Iterable[Problem], path: Path) -> list[Problem]:
    """``problems`` as a list. Raises ``UserError`` if there are none, or an id is repeated."""
    found: dict[str, Problem] = {}
    for problem in problems:
        if problem.id in found:
            raise UserError(f"{path}: task_id {problem.id!r}", rule="is repeated", fix="remove one of them")
        found[problem.id] = problem
    if not found:
        raise UserError(f"problems = {path}", rule="contains no problem", fix="name another file")
    return list(found.values())


def check_texts(row: Row, columns: Sequence[str]) -> None:
    """Raise ``UserError`` if a column of ``row`` is not text, or is empty."""
    for name in columns:
        if not row.text(name, fix="fix that row").strip():
            raise UserError(f"{row.where}: {name} = {row.values[name]!r}", rule="must not be empty", fix="fix that row")


def parse_quietly(text: str) -> ast.Module:
    """``ast.parse`` without warnings about the parsed text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


def parse(text: str, where: str) -> ast.Module:
    """The syntax tree of ``text``. Raises ``UserError`` with ``where`` if it is not Python."""
    try:
        return parse_quietly(text)
    except (SyntaxError, ValueError) as error:
        raise UserError(where, rule=f"contains text that is not Python ({error})", fix="fix that row") from None


def script_tests(row: Row, scripts: Iterable[str]) -> tuple[TestCase, ...]:
    """A test per script. Raises ``UserError`` if a script is not Python."""
    tests = []
    for script in scripts:
        parse(script, row.where)
        tests.append(TestCase(input=script, output=""))
    return tuple(tests)


def _table(path: Path, columns_fix: str) -> Table:
    if not path.is_file():
        raise UserError(f"problems = {path}", rule="is not a file", fix="name the benchmark's JSONL file")
    return open_table(str(path), key="problems", columns_fix=columns_fix)
