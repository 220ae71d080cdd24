"""HumanEval's rows as problems with one assert script each.

The script is the prompt (its imports and helper functions, which some checks use), the row's ``test``, the function
taken from the program, and the call of ``check``. A program is what ``program_from_completion`` makes of a completion.
"""

from __future__ import annotations

import ast
from pathlib import Path

from megatron_ssd.problems.assert_scripts import check_texts, checked_script, parse_quietly, read_rows, unique
from megatron_ssd.problems.table import Row
from megatron_ssd.schema import Problem, TestCase

COLUMNS = ("task_id", "prompt", "entry_point", "test")


def read_humaneval(path: Path) -> list[Problem]:
    """The problems of a file, JSON lines (also gzipped) or parquet, in its order.

    Raises:
        UserError: the file or a row cannot be read, or an id comes twice.
    """
    return unique(map(_problem, read_rows(path, COLUMNS)), path)


def program_from_completion(problem: Problem, completion: str) -> str:
    """What is run: ``completion`` itself where it parses and defines the entry point, else the prompt with it behind.

    Args:
        problem: one of ``read_humaneval``.
        completion: what a model wrote, without fences.
    """
    try:
        statements = parse_quietly(completion).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        statements = []
    is_whole = any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == problem.function_name
        for node in statements
    )
    return completion if is_whole else problem.starter_code + completion


def _problem(row: Row) -> Problem:
    check_texts(row, COLUMNS)
    texts = {name: str(row.values[name]) for name in COLUMNS}
    entry = texts["entry_point"]
    script = f"{_complete(texts['prompt'])}\n{texts['test']}\n{entry} = __program__.{entry}\ncheck({entry})\n"
    return Problem(
        id=texts["task_id"],
        source="humaneval",
        statement=texts["prompt"],
        form="checks",
        starter_code=texts["prompt"],
        function_name=entry,
        tests=(TestCase(input=checked_script(row.where, script), output=""),),
    )


def _complete(prompt: str) -> str:
    """A prompt without a docstring ends in a bare ``def`` line, and wants a body."""
    try:
        parse_quietly(prompt)
    except SyntaxError:
        return prompt + "    pass\n"
    return prompt
