"""evalplus's HumanEval+ and MBPP+ as problems with assert scripts (github.com/evalplus/evalplus).

They come in two layouts. On the Hub, ``evalplus/humanevalplus`` and ``evalplus/mbppplus`` have a column ``test``, a
script that compares with listed results. The released ``HumanEvalPlus.jsonl`` has ``base_input`` and ``plus_input``
instead: each becomes a script of its own, in which the canonical solution says what is expected and evalplus's rule
compares: equal, or both of one type and, where floats are expected or ``atol`` is set, close. ``MbppPlus.jsonl`` is not
read, since its inputs mean other types than JSON has, by a list of tasks in evalplus's code.

Scripts import NumPy, which ``evaluation.sandbox.packages`` must name.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

from megatron_ssd.errors import UserError
from megatron_ssd.problems.assert_scripts import (
    check_texts,
    checked_script,
    defined_in,
    first_columns,
    names_in,
    read_rows,
    unique,
)
from megatron_ssd.problems.humaneval import read_humaneval
from megatron_ssd.problems.table import Row
from megatron_ssd.schema import Problem, TestCase

_TEXTS = ("task_id", "prompt", "canonical_solution", "entry_point")
_INPUTS = ("base_input", "plus_input")
_HUB_COMPARES = "assertion("  # what every script of the Hub's layout calls

# What evalplus's evaluation does with one input, in this project's words. ``find_zero`` (HumanEval/32) has many right
# answers: polynomials are checked by their value.
_COMPARE = """
import copy as _copy, json as _json, numpy as _numpy

def _agrees(out, expected, arguments, atol):
    if _ENTRY == "find_zero":
        return abs(sum(c * out**i for i, c in enumerate(arguments[0]))) <= atol
    if out == expected:
        return True
    parts = expected if isinstance(expected, (list, tuple)) and expected else [expected]
    atol = atol or (1e-6 if all(isinstance(part, float) for part in parts) else 0)
    if not atol or type(out) is not type(expected):
        return False
    if isinstance(expected, (list, tuple)) and len(out) != len(expected):
        return False
    return bool(_numpy.allclose(out, expected, rtol=1e-7, atol=atol))

for _arguments in _json.loads(_INPUTS):
    _expected = _REFERENCE(*_copy.deepcopy(_arguments))
    assert _agrees(_CANDIDATE(*_arguments), _expected, _arguments, _ATOL), f"{_ENTRY}{tuple(_arguments)}"[:200]
"""


def read_humaneval_plus(path: Path) -> list[Problem]:
    """The problems of a file in either layout. Two tests a problem where inputs are apart, else one.

    Raises:
        UserError: the file or a row cannot be read, an id comes twice, or the tests are HumanEval's own.
    """
    columns = first_columns(path)
    if "test" in columns and columns.isdisjoint(_INPUTS):
        problems = read_humaneval(path)
        for problem in problems:
            if _HUB_COMPARES not in problem.tests[0].input:
                raise UserError(
                    f"{path}: task_id {problem.id!r}",
                    rule="has HumanEval's own test, not evalplus's",
                    fix="use format=humaneval, or a file of evalplus",
                )
        return problems
    return unique(map(_humaneval_problem, read_rows(path, (*_TEXTS, *_INPUTS, "atol"))), path)


def read_mbpp_plus(path: Path) -> list[Problem]:
    """The problems of a file in the Hub's layout, one test each.

    Raises:
        UserError: the file or a row cannot be read, or an id comes twice.
    """
    return unique(map(_mbpp_problem, read_rows(path, ("task_id", "prompt", "code", "test"))), path)


def _humaneval_problem(row: Row) -> Problem:
    check_texts(row, _TEXTS)
    values = row.values
    tests = []
    for column in _INPUTS:
        inputs, atol = values[column], values["atol"]
        if not isinstance(inputs, list) or not all(isinstance(arguments, list) for arguments in inputs):
            raise UserError(f"{row.where}: {column}", rule="must be a list of lists of arguments", fix="mend that row")
        if isinstance(atol, bool) or not isinstance(atol, int | float):
            raise UserError(f"{row.where}: atol = {atol!r}", rule="must be a number", fix="mend that row")
        entry = values["entry_point"]
        head = (
            f"_ENTRY, _ATOL, _INPUTS = {entry!r}, {atol!r}, {json.dumps(inputs)!r}\n"
            f"_REFERENCE, _CANDIDATE = {entry}, __program__.{entry}\n"
        )
        script = f"{values['prompt']}{values['canonical_solution']}\n{head}{_COMPARE}"
        tests.append(TestCase(input=checked_script(row.where, script), output=""))
    return Problem(
        id=values["task_id"],
        source="humaneval",
        statement=values["prompt"],
        form="checks",
        starter_code=values["prompt"],
        function_name=values["entry_point"],
        tests=tuple(tests),
    )


def _mbpp_problem(row: Row) -> Problem:
    check_texts(row, ("prompt", "code", "test"))
    code, test = row.values["code"], row.values["test"]
    # The script's own functions, such as a reference to compare with, stay its own.
    owed = (defined_in(code, row.where) & names_in(test, row.where, ast.Load)) - defined_in(test, row.where)
    if not owed:
        raise UserError(f"{row.where}: test", rule="calls no function of the reference code", fix="mend that row")
    head = "".join(f"{name} = __program__.{name}\n" for name in sorted(owed))
    return Problem(
        id=str(row.values["task_id"]),
        source="mbpp",
        statement=row.values["prompt"],
        form="checks",
        tests=(TestCase(input=checked_script(row.where, head + test), output=""),),
    )
