"""Reads HumanEval, or evalplus's HumanEval+, as problems with assert scripts.

A script of HumanEval consists of the prompt (some checks use its imports and helper functions), the row's ``test``, the
function from the program, and the call of ``check``.

HumanEval+ (github.com/evalplus/evalplus) has two layouts. On the Hub, ``evalplus/humanevalplus`` has a column ``test``,
a script that compares with listed results. The released ``HumanEvalPlus.jsonl`` has ``base_input`` and ``plus_input``
instead. Each of them becomes a script of its own: the canonical solution computes the expected value, and evalplus's
rule compares. Two values agree if they are equal, or if both have the same type and are close; closeness counts only if
floats are expected or ``atol`` is set. These scripts import NumPy, which ``evaluation.sandbox.packages`` must name.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

from megatron_ssd.errors import UserError
from megatron_ssd.problems.assert_scripts import (
    check_texts,
    first_columns,
    parse_quietly,
    read_rows,
    script_tests,
    unique,
)
from megatron_ssd.problems.table import Row
from megatron_ssd.schema import Problem

COLUMNS = ("task_id", "prompt", "entry_point", "test")
_PLUS_TEXTS = ("task_id", "prompt", "canonical_solution", "entry_point")
_PLUS_INPUTS = ("base_input", "plus_input")
_HUB_COMPARES = "assertion("  # every script of the Hub's layout calls this

# A rewrite of what evalplus's evaluation does with one input. ``find_zero`` (HumanEval/32) has many right answers:
# polynomials are checked by their value.
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


def read_humaneval(path: Path) -> list[Problem]:
    """The problems of a file, JSON lines (also gzipped) or parquet, in its order, one test each.

    Raises:
        UserError: the file or a row cannot be read, or an id is repeated.
    """
    return unique((_problem(row, "humaneval") for row in read_rows(path, COLUMNS)), path)


def read_humaneval_plus(path: Path) -> list[Problem]:
    """The problems of a HumanEval+ file in either layout, with one test, or two if the inputs are in the file.

    Raises:
        UserError: the file or a row cannot be read, an id is repeated, or the tests are HumanEval's own.
    """
    columns = first_columns(path)
    if "test" not in columns or not columns.isdisjoint(_PLUS_INPUTS):
        return unique(map(_plus_problem, read_rows(path, (*_PLUS_TEXTS, *_PLUS_INPUTS, "atol"))), path)
    problems = unique((_problem(row, "humaneval_plus") for row in read_rows(path, COLUMNS)), path)
    for problem in problems:
        if _HUB_COMPARES not in problem.tests[0].input:
            raise UserError(
                f"{path}: task_id {problem.id!r}",
                rule="has HumanEval's own test, not evalplus's",
                fix="use format=humaneval, or a file of evalplus",
            )
    return problems


def program_from_completion(problem: Problem, completion: str) -> str:
    """The program to run: ``completion`` if it parses and defines the entry point, else the prompt followed by it.

    Args:
        problem: one of ``read_humaneval``.
        completion: what a model wrote, without fences.
    """
    try:
        statements = parse_quietly(completion).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        statements = []
    defines_entry_point = any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == problem.function_name
        for node in statements
    )
    return completion if defines_entry_point else problem.starter_code + completion


def _problem(row: Row, source: str) -> Problem:
    check_texts(row, COLUMNS)
    entry = row.values["entry_point"]
    prompt = _with_body(row.values["prompt"])
    script = f"{prompt}\n{row.values['test']}\n{entry} = __program__.{entry}\ncheck({entry})\n"
    return _with_scripts(row, source, [script])


def _plus_problem(row: Row) -> Problem:
    check_texts(row, _PLUS_TEXTS)
    values, entry, atol = row.values, row.values["entry_point"], row.values["atol"]
    scripts = []
    for column in _PLUS_INPUTS:
        inputs = values[column]
        if not isinstance(inputs, list) or not all(isinstance(arguments, list) for arguments in inputs):
            raise UserError(f"{row.where}: {column}", rule="must be a list of lists of arguments", fix="fix that row")
        if isinstance(atol, bool) or not isinstance(atol, int | float):
            raise UserError(f"{row.where}: atol = {atol!r}", rule="must be a number", fix="fix that row")
        head = (
            f"_ENTRY, _ATOL, _INPUTS = {entry!r}, {atol!r}, {json.dumps(inputs)!r}\n"
            f"_REFERENCE, _CANDIDATE = {entry}, __program__.{entry}\n"
        )
        scripts.append(f"{values['prompt']}{values['canonical_solution']}\n{head}{_COMPARE}")
    return _with_scripts(row, "humaneval_plus", scripts)


def _with_scripts(row: Row, source: str, scripts: list[str]) -> Problem:
    return Problem(
        id=row.values["task_id"],
        source=source,
        statement=row.values["prompt"],
        form="checks",
        starter_code=row.values["prompt"],
        function_name=row.values["entry_point"],
        tests=script_tests(row, scripts),
    )


def _with_body(prompt: str) -> str:
    """``prompt``; one without a docstring ends in a bare ``def`` line and gets a body."""
    try:
        parse_quietly(prompt)
    except SyntaxError:
        return prompt + "    pass\n"
    return prompt
