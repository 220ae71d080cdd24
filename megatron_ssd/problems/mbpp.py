"""Reads MBPP, or MBPP+, as problems with assert scripts.

MBPP has one script per assertion of ``test_list``. They run one after another behind the program, the first of them
behind the imports of the tests and ``test_setup_code``. The set-up runs after the program, as tasks 367 and 927 need
it.

MBPP+ has two layouts: on the Hub, ``evalplus/mbppplus`` has a column ``test``, one script per problem, which imports
NumPy; ``MbppPlus.jsonl`` has inputs (``evalplus``).

A problem's ``metadata`` has the assertions that a prompt shows, since the text of a task does not name its function.
"""

from __future__ import annotations

import ast
from pathlib import Path

from megatron_ssd.errors import UserError
from megatron_ssd.problems import evalplus
from megatron_ssd.problems.assert_scripts import check_texts, first_columns, parse, read_rows, script_tests, unique
from megatron_ssd.problems.table import Row
from megatron_ssd.schema import Problem

COLUMNS = ("task_id", "code", "test_list")
_FULL_COLUMNS, _SANITISED_COLUMNS = ("text", "test_setup_code"), ("prompt", "test_imports")
_PLUS_COLUMNS = ("task_id", "prompt", "code", "test")


def read_mbpp(path: Path) -> list[Problem]:
    """The problems of a file, JSON lines or parquet, in its order: the full set or the sanitised one.

    Raises:
        UserError: the file or a row cannot be read, or an id is repeated.
    """
    more = _SANITISED_COLUMNS if "test_imports" in first_columns(path) else _FULL_COLUMNS
    return unique(map(_problem, read_rows(path, (*COLUMNS, *more))), path)


def read_mbpp_plus(path: Path) -> list[Problem]:
    """The problems of an MBPP+ file in either layout, with one test, or two if the inputs are in the file.

    Raises:
        UserError: the file or a row cannot be read, or an id is repeated.
    """
    columns = first_columns(path)
    if not columns.isdisjoint(evalplus.INPUTS):
        rows = read_rows(path, evalplus.COLUMNS)
        return unique((evalplus.read_inputs(row, "mbpp_plus") for row in rows), path)
    more = ("test_list",) if "test_list" in columns else ()
    return unique(map(_plus_problem, read_rows(path, (*_PLUS_COLUMNS, *more))), path)


def _problem(row: Row) -> Problem:
    values = row.values
    asserts, code = values["test_list"], values["code"]
    if not isinstance(asserts, list) or not asserts or not all(isinstance(text, str) for text in asserts):
        raise UserError(f"{row.where}: test_list", rule="must be a list of assertions", fix="fix that row")
    if not isinstance(code, str):
        raise UserError(f"{row.where}: code", rule="must be the reference solution's text", fix="fix that row")
    setup = row.optional_text("test_setup_code", fix="fix that row")
    head = "".join(f"{text}\n" for text in (*(values.get("test_imports") or ()), setup))
    return Problem(
        id=str(values["task_id"]),
        source="mbpp",
        statement=str(values.get("text") or values.get("prompt") or ""),
        form="checks",
        function_name=_entry_point(code, "\n".join(asserts), row.where),
        tests=script_tests(row, [head.lstrip("\n") + asserts[0], *asserts[1:]]),
        metadata={"assertions": "\n".join(asserts)},
    )


def _plus_problem(row: Row) -> Problem:
    check_texts(row, _PLUS_COLUMNS[1:])
    code, test = row.values["code"], row.values["test"]
    entry = _entry_point(code, test, row.where)
    if entry is None:
        raise UserError(f"{row.where}: test", rule="calls no function of the reference code", fix="fix that row")
    first, *_ = row.values.get("test_list") or [f"assert callable({entry})"]  # evalplus's prompts show the first
    return Problem(
        id=str(row.values["task_id"]),
        source="mbpp_plus",
        statement=row.values["prompt"],
        form="checks",
        function_name=entry,
        tests=script_tests(row, [test]),
        metadata={"canonical_solution": code, "assertions": str(first)},
    )


def _entry_point(code: str, test: str, where: str) -> str | None:
    """The first function or class of the reference ``code`` that ``test`` names; None if it names none."""
    used = [node.id for node in ast.walk(parse(test, where)) if isinstance(node, ast.Name)]
    defined = {
        node.name for node in parse(code, where).body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    } - {node.name for node in parse(test, where).body if isinstance(node, ast.FunctionDef)}  # fmt: skip
    return next((name for name in used if name in defined), None)
