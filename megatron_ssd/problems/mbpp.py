"""MBPP's rows as problems, one assert script for each assertion of ``test_list``.

A script is the imports of the tests, the names that the program owes, ``test_setup_code`` and the assertion, so that
the set-up runs after the program, as tasks 367 and 927 need it. What the tests use and neither they nor Python define
comes from the reference ``code``: what that one imports is imported, everything else is the program's.
"""

from __future__ import annotations

import ast
import builtins
from pathlib import Path

from megatron_ssd.errors import UserError
from megatron_ssd.problems.assert_scripts import checked_script, defined_in, names_in, read_rows, tree_of, unique
from megatron_ssd.problems.table import Row
from megatron_ssd.schema import Problem, TestCase

COLUMNS = ("task_id", "code", "test_list")
_OF_VERSION = (("text", "test_setup_code"), ("prompt", "test_imports"))  # the whole set's, the sanitised one's


def read_mbpp(path: Path) -> list[Problem]:
    """The problems of a file, JSON lines or parquet, in its order: the whole set or the sanitised one.

    Raises:
        UserError: the file or a row cannot be read, or an id comes twice.
    """
    whole, sanitised = ((*COLUMNS, *more) for more in _OF_VERSION)
    try:
        rows = list(read_rows(path, whole))
    except UserError as error:
        try:
            rows = list(read_rows(path, sanitised))
        except UserError:
            raise error from None
    return unique(map(_problem, rows), path)


def _problem(row: Row) -> Problem:
    values = row.values
    asserts, code = values["test_list"], values["code"]
    if not isinstance(asserts, list) or not asserts or not all(isinstance(text, str) for text in asserts):
        raise UserError(f"{row.where}: test_list", rule="must be a list of assertions", fix="mend that row")
    if not isinstance(code, str):
        raise UserError(f"{row.where}: code", rule="must be the reference solution's text", fix="mend that row")
    imports, setup = "\n".join(values.get("test_imports") or ()), values.get("test_setup_code") or ""
    used = names_in("\n".join([setup, *asserts]), row.where, ast.Load)
    own = names_in(f"{imports}\n{setup}", row.where, ast.Store) | _imported(imports, row.where).keys()
    reference_imports = _imported(code, row.where)
    defined = defined_in(code, row.where)
    head = [imports, *(reference_imports[name] for name in sorted(used & reference_imports.keys() - own - defined))]
    owed = {
        name for name in used - own if name in defined or not (hasattr(builtins, name) or name in reference_imports)
    }
    head += [f"{name} = __program__.{name}" for name in sorted(owed)]
    scripts = [checked_script(row.where, "\n".join([*head, setup, text, ""])) for text in asserts]
    return Problem(
        id=str(values["task_id"]),
        source="mbpp",
        statement=str(values.get("text") or values.get("prompt") or ""),
        form="checks",
        tests=tuple(TestCase(input=script, output="") for script in scripts),
    )


def _imported(code: str, where: str) -> dict[str, str]:
    """Name -> the statement that imports it, at the top level of ``code``."""
    found: dict[str, str] = {}
    for node in tree_of(code, where).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name.partition(".")[0]] = ast.unparse(node)
    return found
