"""Reads LeetCode problems with a ``check`` function, as in rllm's test set: one assert script per problem.

``tests`` is an object, or the text of one. Its ``functional`` defines ``check(candidate)`` and calls it with a method
of a new ``Solution``. The rows have no id, so a problem is named after its row.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from megatron_ssd.errors import UserError
from megatron_ssd.problems.assert_scripts import read_rows, script_tests, unique
from megatron_ssd.problems.table import Row
from megatron_ssd.schema import Problem

COLUMNS = ("problem", "tests")


def read_leetcode(path: Path) -> list[Problem]:
    """The problems of a JSON or JSON lines file, named ``1``, ``2``, ... in its order.

    Raises:
        UserError: the file or a row cannot be read.
    """
    rows = enumerate(read_rows(path, COLUMNS), start=1)
    return unique((_problem(str(number), row) for number, row in rows), path)


def _problem(identity: str, row: Row) -> Problem:
    try:
        script = f"{_object(row.values['tests'])['functional']}\n"
    except (ValueError, SyntaxError, KeyError, TypeError):
        raise UserError(f"{row.where}: tests", rule="must contain functional, a check function and its call",
                        fix="fix that row") from None  # fmt: skip
    return Problem(
        id=identity,
        source="leetcode",
        statement=str(row.values["problem"]),
        form="checks",
        starter_code="class Solution:",
        tests=script_tests(row, [script]),
    )


def _object(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return ast.literal_eval(value)
