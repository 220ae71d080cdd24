"""Reads MBPP, or evalplus's MBPP+, as problems with assert scripts.

MBPP has one script per assertion of ``test_list``: the imports of the tests, the names that the program must define,
``test_setup_code`` and the assertion. The set-up runs after the program, as tasks 367 and 927 need it. A name that the
tests use, and that neither the tests nor Python define, comes from the reference ``code``: if the reference imports it,
the script imports it; otherwise the program must define it.

MBPP+ has one script per problem, the column ``test`` of ``evalplus/mbppplus`` on the Hub. It imports NumPy, which
``evaluation.sandbox.packages`` must name. The released ``MbppPlus.jsonl`` is not read: evalplus's code has a list of
tasks whose inputs stand for types that JSON lacks.
"""

from __future__ import annotations

import ast
import builtins
from pathlib import Path
from typing import Any

from megatron_ssd.errors import UserError
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
    used = _names("\n".join([setup, *asserts]), row.where, ast.Load)
    own = _names(f"{imports}\n{setup}", row.where, ast.Store) | _imported(imports, row.where).keys()
    reference_imports = _imported(code, row.where)
    defined = _defined(code, row.where)
    head = [imports, *(reference_imports[name] for name in sorted(used & reference_imports.keys() - own - defined))]
    required = {
        name for name in used - own if name in defined or not (hasattr(builtins, name) or name in reference_imports)
    }
    head += [f"{name} = __program__.{name}" for name in sorted(required)]
    return Problem(
        id=str(values["task_id"]),
        source="mbpp",
        statement=str(values.get("text") or values.get("prompt") or ""),
        form="checks",
        tests=script_tests(row, ("\n".join([*head, setup, text, ""]) for text in asserts)),
    )


def _plus_problem(row: Row) -> Problem:
    check_texts(row, _PLUS_COLUMNS[1:])
    code, test = row.values["code"], row.values["test"]
    # The script's own functions, such as a reference to compare with, are not taken from the program.
    required = (_defined(code, row.where) & _names(test, row.where, ast.Load)) - _defined(test, row.where)
    if not required:
        raise UserError(f"{row.where}: test", rule="calls no function of the reference code", fix="fix that row")
    head = "".join(f"{name} = __program__.{name}\n" for name in sorted(required))
    return Problem(
        id=str(row.values["task_id"]),
        source="mbpp_plus",
        statement=row.values["prompt"],
        form="checks",
        tests=script_tests(row, [head + test]),
    )


def _names(text: str, where: str, context: type[Any]) -> set[str]:
    """Names that ``text`` reads (``ast.Load``) or sets (``ast.Store``)."""
    return {n.id for n in ast.walk(parse(text, where)) if isinstance(n, ast.Name) and isinstance(n.ctx, context)}


def _defined(code: str, where: str) -> set[str]:
    """Functions, classes and variables at the top level of ``code``."""
    found: set[str] = set()
    for node in parse(code, where).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def _imported(code: str, where: str) -> dict[str, str]:
    """Name -> the statement that imports it, at the top level of ``code``."""
    found: dict[str, str] = {}
    for node in parse(code, where).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name.partition(".")[0]] = ast.unparse(node)
    return found
