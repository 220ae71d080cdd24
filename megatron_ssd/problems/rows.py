"""Training problems from rows: rStar-Coder's ``seed_sft``, or any file whose columns are named.

Answers, verdicts and every other column stay unread: SSD samples its own responses. A problem asks for a function where
its starter code holds more than white space, for a program on standard input otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from megatron_ssd.config.problems import ColumnsConfig, ProblemsConfig
from megatron_ssd.errors import UserError
from megatron_ssd.problems.selection import Candidate
from megatron_ssd.problems.table import Row, Table, open_table
from megatron_ssd.schema import Problem

KEY = "problems.path"
_HUB_FOLDERS = {"rstar_coder": "seed_sft"}
_RSTAR_CODER = ColumnsConfig(id="question_id", statement="question", starter_code="starter_code", passed="is_passed")


def open_rows(section: ProblemsConfig) -> Table:
    """The source's files. Raises ``UserError`` where there are none."""
    hub_folder = _HUB_FOLDERS.get(section.name, "")
    fix = "name the columns of your file in problems.columns"
    if section.columns is None:
        fix = f"take problems=rows and {fix}"
    return open_table(str(section.path), key=KEY, columns_fix=fix, revision=section.revision, hub_folder=hub_folder)


def read_candidates(table: Table, section: ProblemsConfig) -> Iterator[Candidate]:
    """Every row as a problem, in file order, blank and repeated ones included.

    Raises:
        UserError: a file cannot be read, a column is missing, or a value is of another type than the column's use.
    """
    columns = section.columns or _RSTAR_CODER
    if not section.only_passed:  # a file without that column serves as well
        columns = dataclasses.replace(columns, passed=None)
    for number, row in enumerate(table.rows(columns.names), start=1):
        starter_code = _text(row, columns.starter_code)
        has_code = bool(starter_code.strip())
        problem = Problem(
            id=_id(row, columns.id) if columns.id else f"row-{number}",
            source=section.name,
            statement=_text(row, columns.statement).strip(),
            form="function" if has_code else "stdin",
            starter_code=starter_code if has_code else "",
        )
        yield Candidate(problem, passed=_truth(row, columns.passed))


def _id(row: Row, column: str) -> str:
    value: Any = row.values[column]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(
            f"{row.where}: {column} = {str(value)[:60]!r}",
            rule="an id must be text or a whole number",
            fix="mend that row, or take problems=rows without problems.columns.id, which names problems after rows",
        )
    return str(value)


def _text(row: Row, column: str | None) -> str:
    value: Any = row.values[column] if column else None
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"{row.where}: {column} = {str(value)[:60]!r}",
            rule=f"must be text and is a {type(value).__name__}",
            fix="name the columns of your file in problems.columns",
        )
    return value


def _truth(row: Row, column: str | None) -> bool | None:
    value: bool | None = row.values[column] if column else None
    if column and not isinstance(value, bool | None):
        raise UserError(
            f"{row.where}: {column} = {str(value)[:60]!r}",
            rule="must be true or false",
            fix="name another column in problems.columns.passed",
        )
    return value
