"""What the readers of benchmarks that judge by assert scripts share."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from megatron_ssd.errors import UserError
from megatron_ssd.problems.table import Row, open_table
from megatron_ssd.schema import Problem


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Rows of a local file. Raises ``UserError`` where it is missing, or a row cannot be read or lacks a column."""
    fix = f"its columns must be {', '.join(columns)}; is it of another format?"
    if not path.is_file():
        raise UserError(f"problems = {path}", rule="is no file", fix="name the benchmark's JSONL file")
    return open_table(str(path), key="problems", columns_fix=fix).rows(columns)


def unique(problems: Iterable[Problem], path: Path) -> list[Problem]:
    """``problems`` as a list. Raises ``UserError`` where there is none, or an id comes twice."""
    found: dict[str, Problem] = {}
    for problem in problems:
        if problem.id in found:
            raise UserError(f"{path}: task_id {problem.id!r}", rule="comes a second time", fix="remove one of them")
        found[problem.id] = problem
    if not found:
        raise UserError(f"problems = {path}", rule="holds no problem", fix="name another file")
    return list(found.values())


def parse_quietly(text: str) -> ast.Module:
    """``ast.parse`` without its warnings on texts that others wrote."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


def checked_script(where: str, script: str) -> str:
    """``script`` itself. Raises ``UserError`` where it is not Python."""
    try:
        parse_quietly(script)
    except (SyntaxError, ValueError) as error:
        raise UserError(where, rule=f"its checks are not Python ({error})", fix="download the file again") from None
    return script
