"""Opens the problems that a run samples.

They come from rStar-Coder's ``seed_sft``, from any file whose columns are named or have usual names, or from minicode.
Answers, verdicts and all other columns are not read: SSD samples its own responses. A problem asks for a function if
its starter code holds more than white space or a word for null, otherwise for a program on standard input.

Order and content depend on the configuration and the files alone.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

from megatron_ssd.artifacts.hashing import hash_json
from megatron_ssd.config.problems import ColumnsConfig, MinicodeConfig, ProblemsConfig
from megatron_ssd.errors import UserError
from megatron_ssd.problems import minicode
from megatron_ssd.problems.table import Row, Table, is_null, open_table
from megatron_ssd.schema import Problem

_HUB_FOLDERS = {"rstar_coder": "seed_sft"}
_RSTAR_CODER = ColumnsConfig(id="question_id", statement="question", starter_code="starter_code", passed="is_passed")
_COLUMNS_FIX = "name the columns of your file in problems.columns"
# What data sets call the text of a problem; the first one that a file has is used. "prompt" comes after the names of a
# bare problem, since it may hold instructions as well.
_STATEMENT_COLUMNS = (
    "statement", "problem_statement", "question", "question_content", "problem", "description", "text", "prompt",
    "instruction",
)  # fmt: skip
_STARTER_CODE_COLUMN = "starter_code"

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Source:
    """Training problems before any selection.

    ``revision`` is the Hub's commit, or a hash of the files (of the configuration for minicode).
    """

    section: ProblemsConfig
    revision: str
    world: MinicodeConfig
    table: Table | None

    def read(self) -> Iterator[tuple[Problem, bool]]:
        """Every row in order, blank and repeated ones included, as a problem and whether it passed.

        All rows count as passed unless ``only_passed`` is set.

        Raises:
            UserError: a file cannot be read, a column is missing, or a value does not have its column's type.
        """
        if self.table is None:
            yield from ((problem, True) for problem in minicode.train_problems(self.world))
            return
        columns = self.section.columns or (_usual_columns(self.table) if self.section.name == "rows" else _RSTAR_CODER)
        if not self.section.only_passed:  # then a file without that column can be used
            columns = dataclasses.replace(columns, passed=None)
        for number, row in enumerate(self.table.rows(columns.names), start=1):
            starter_code = row.optional_text(columns.starter_code, fix=_COLUMNS_FIX) if columns.starter_code else ""
            statement = row.text(columns.statement, fix=_COLUMNS_FIX).strip()
            has_code = bool(starter_code.strip())
            problem = Problem(
                id=_id(row, columns.id) if columns.id else f"row-{number}",
                source=self.section.name,
                statement="" if is_null(statement) else statement,
                form="function" if has_code else "stdin",
                starter_code=starter_code if has_code else "",
            )
            yield problem, _passed(row, columns.passed)


def open_source(section: ProblemsConfig, world: MinicodeConfig) -> Source:
    """Find the training problems. Raises ``UserError`` if there are none."""
    if section.name == "minicode":
        return Source(section, hash_json(world.of_problems("train")), world, None)
    fix = _COLUMNS_FIX if section.name == "rows" else f"use problems=rows and {_COLUMNS_FIX}"
    table = open_table(str(section.path), key="problems.path", columns_fix=fix, revision=section.revision,
                       hub_folder=_HUB_FOLDERS.get(section.name, ""))  # fmt: skip
    return Source(section, table.identity, world, table)


def _usual_columns(table: Table) -> ColumnsConfig:
    """The columns of a file, by their usual names. Raises ``UserError`` if none is the text of a problem."""
    first = next(table.rows(None), None)
    names = () if first is None else tuple(first.values)
    statement = next((name for name in _STATEMENT_COLUMNS if name in names), None)
    if first is not None and statement is None:
        raise UserError(f"problems.path: columns {', '.join(names)}",
                        rule=f"none has a usual name for a problem's text ({', '.join(_STATEMENT_COLUMNS)})",
                        fix="name it in problems.columns.statement")  # fmt: skip
    starter_code = _STARTER_CODE_COLUMN if _STARTER_CODE_COLUMN in names else None
    columns = ColumnsConfig(statement=statement or _STATEMENT_COLUMNS[0], starter_code=starter_code)
    log.info("problems: columns %s; problems.columns names others", ", ".join(columns.names))
    return columns


def _id(row: Row, column: str) -> str:
    value: Any = row.values[column]
    if isinstance(value, bool) or not isinstance(value, str | int) or is_null(value):
        fix = "fix that row, or use problems=rows without problems.columns.id, which names problems after their rows"
        raise row.error(column, "an id must be text or a whole number", fix=fix)
    return str(value)


def _passed(row: Row, column: str | None) -> bool:
    value = row.values[column] if column else True
    if column and not is_null(value) and not isinstance(value, bool):
        raise row.error(column, "must be true or false", fix="name another column in problems.columns.passed")
    return value is True
