"""Reads MBPP and evalplus's MBPP+ as problems with assert scripts.

MBPP has one script per assertion of ``test_list``: the imports of the tests, the names that the program must define,
``test_setup_code`` and the assertion. The set-up runs after the program, as tasks 367 and 927 need it. A name that the
tests use and that neither they nor Python define comes from the reference ``code``: if the reference imports it, the
script imports it, otherwise the program must define it.

MBPP+ has one script per problem, the column ``test`` of ``evalplus/mbppplus`` on the Hub. It imports NumPy, which
``evaluation.sandbox.packages`` must name. The released ``MbppPlus.jsonl`` is not read: by a list of tasks in evalplus's
code, its inputs stand for types that JSON lacks.
"""

from __future__ import annotations

import ast
import builtins
from pathlib import Path

from megatron_ssd.errors import UserError
from megatron_ssd.problems.assert_scripts import (
    check_texts,
    checked_script,
    defined_in,
    names_in,
    read_rows,
    tree_of,
    unique,
)
from megatron_ssd.problems.table import Row
from megatron_ssd.schema import Problem, TestCase

COLUMNS = ("task_id", "code", "test_list")
_OF_VERSION = (("text", "test_setup_code"), ("prompt", "test_imports"))  # the full set, the sanitised one
_PLUS_COLUMNS = ("task_id", "prompt", "code", "test")


def read_mbpp(path: Path) -> list[Problem]:
    """The problems of a file, JSON lines or parquet, in its order: the full set or the sanitised one.

    Raises:
        UserError: the file or a row cannot be read, or an id is repeated.
    """
    full, sanitised = ((*COLUMNS, *more) for more in _OF_VERSION)
    try:
        rows = list(read_rows(path, full))
    except UserError as error:
        try:
            rows = list(read_rows(path, sanitised))
        except UserError:
            raise error from None
    return unique(map(_problem, rows), path)


def read_mbpp_plus(path: Path) -> list[Problem]:
    """The problems of an MBPP+ file in the Hub's layout, one test each.

    Raises:
        UserError: the file or a row cannot be read, or an id is repeated.
    """
    return unique(map(_plus_problem, read_rows(path, _PLUS_COLUMNS)), path)


def _problem(row: Row) -> Problem:
    values = row.values
    asserts, code = values["test_list"], values["code"]
    if not isinstance(asserts, list) or not asserts or not all(isinstance(text, str) for text in asserts):
        raise UserError(f"{row.where}: test_list", rule="must be a list of assertions", fix="fix that row")
    if not isinstance(code, str):
        raise UserError(f"{row.where}: code", rule="must be the reference solution's text", fix="fix that row")
    imports, setup = "\n".join(values.get("test_imports") or ()), values.get("test_setup_code") or ""
    used = names_in("\n".join([setup, *asserts]), row.where, ast.Load)
    own = names_in(f"{imports}\n{setup}", row.where, ast.Store) | _imported(imports, row.where).keys()
    reference_imports = _imported(code, row.where)
    defined = defined_in(code, row.where)
    head = [imports, *(reference_imports[name] for name in sorted(used & reference_imports.keys() - own - defined))]
    required = {
        name for name in used - own if name in defined or not (hasattr(builtins, name) or name in reference_imports)
    }
    head += [f"{name} = __program__.{name}" for name in sorted(required)]
    scripts = [checked_script(row.where, "\n".join([*head, setup, text, ""])) for text in asserts]
    return Problem(
        id=str(values["task_id"]),
        source="mbpp",
        statement=str(values.get("text") or values.get("prompt") or ""),
        form="checks",
        tests=tuple(TestCase(input=script, output="") for script in scripts),
    )


def _plus_problem(row: Row) -> Problem:
    check_texts(row, _PLUS_COLUMNS[1:])
    code, test = row.values["code"], row.values["test"]
    # The script's own functions, such as a reference to compare with, are not taken from the program.
    required = (defined_in(code, row.where) & names_in(test, row.where, ast.Load)) - defined_in(test, row.where)
    if not required:
        raise UserError(f"{row.where}: test", rule="calls no function of the reference code", fix="fix that row")
    head = "".join(f"{name} = __program__.{name}\n" for name in sorted(required))
    return Problem(
        id=str(row.values["task_id"]),
        source="mbpp",
        statement=row.values["prompt"],
        form="checks",
        tests=(TestCase(input=checked_script(row.where, head + test), output=""),),
    )


def _imported(code: str, where: str) -> dict[str, str]:
    """Name -> the statement that imports it, at the top level of ``code``."""
    found: dict[str, str] = {}
    for node in tree_of(code, where).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name.partition(".")[0]] = ast.unparse(node)
    return found
