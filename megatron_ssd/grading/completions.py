"""Reads programs from files of completions.

A file has JSON lines, also gzipped; blank lines are skipped. A line is an object with an id (``question_id``,
``task_id`` or ``problem_id``) and one text. Lines of the same problem are its samples 0, 1, ... in the order of the
file.
- ``code``, or ``solution`` (evalplus), is the program as it is. ``code_list`` (LiveCodeBench) is a list of them.
- ``response`` is a chat model's answer. The rule of the benchmark finds the program (``grading.extraction``).
- ``completion`` continues the problem's prompt, if it has one, and runs behind it as it is. Only a text that does not
  parse there, but has fences, is read as a ``response``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_ssd.errors import UserError
from megatron_ssd.grading.extraction import program_of_response, prompt_of
from megatron_ssd.grading.pool import Submission
from megatron_ssd.problems.table import open_table
from megatron_ssd.prompts.entry_point import parses
from megatron_ssd.prompts.extract import Extraction
from megatron_ssd.schema import Problem

ID_KEYS = ("question_id", "task_id", "problem_id")
PROGRAM_KEYS = ("code", "solution", "code_list")
TEXT_KEYS = ("completion", "response", *PROGRAM_KEYS)
_MBPP = "Mbpp/"  # evalplus's ids are those of MBPP behind this


def count_samples(path: Path, problems: Mapping[str, Problem]) -> Counter[str]:
    """Number of samples per problem. Reads and checks every line.

    Raises:
        UserError: the file is missing or empty, a line does not have one id and one text, or its problem is unknown.
    """
    counts = Counter(problem_id for problem_id, _, _ in _records(path, problems))
    if not counts:
        raise UserError(f"samples = {path}", rule="contains no record", fix="name another file")
    return counts


def read_submissions(path: Path, problems: Mapping[str, Problem]) -> Iterator[Submission]:
    """The program of each line, one at a time. Raises ``UserError`` as ``count_samples`` does."""
    seen: Counter[str] = Counter()
    for problem_id, key, text in _records(path, problems):
        found = program_of(key, text, problems[problem_id])
        yield Submission(
            problem_id=problem_id, sample_index=seen[problem_id], source=found.program, note=found.cause or ""
        )
        seen[problem_id] += 1


def program_of(key: str, text: str, problem: Problem) -> Extraction:
    """The program in ``text``, the value of ``key`` in a line; see the module."""
    if key == "response":
        return program_of_response(problem, text)
    program = prompt_of(problem) + text if key == "completion" else text
    if key == "completion" and "```" in text and not parses(program):
        found = program_of_response(problem, text)
        if found.program is not None:
            return found
    return Extraction(program=program) if program.strip() else Extraction(cause="empty response")


def _records(path: Path, problems: Mapping[str, Problem]) -> Iterator[tuple[str, str, str]]:
    """(problem id, key of the text, text) of each sample."""
    if not path.is_file():
        raise UserError(f"samples = {path}", rule="is not a file", fix="name a file of JSON lines")
    for row in open_table(str(path), key="samples", columns_fix="fix that line").rows(None):
        _, identity = _one(row.values, ID_KEYS, row.where, "an id")
        key, value = _one(row.values, TEXT_KEYS, row.where, "a text")
        texts = value if key == "code_list" and isinstance(value, list) else [value]
        for text in texts:
            if not isinstance(text, str):
                raise UserError(f"{row.where}: {key} = {str(text)[:60]!r}", rule="must be text", fix="fix that line")
            yield _known(str(identity), problems, row.where), key, text


def _known(identity: str, problems: Mapping[str, Problem], where: str) -> str:
    """The id among ``problems`` that ``identity`` names."""
    for name in (identity, identity.removeprefix(_MBPP), _MBPP + identity):
        if name in problems:
            return name
    raise UserError(
        f"{where}: {identity}",
        rule="is not a problem of the benchmark's file or window",
        fix=f"its {len(problems)} problems have ids like {next(iter(problems))}",
    )


def _one(record: dict[str, Any], keys: tuple[str, ...], where: str, what: str) -> tuple[str, Any]:
    """The only one of ``keys`` that ``record`` has, and its value."""
    found = [key for key in keys if key in record]
    if len(found) > 1:
        raise UserError(f"{where}: a record with {', '.join(map(str, record))}",
                        rule=f"has {what} under {' and '.join(found)}, and only one can count",
                        fix="remove all but one of them")  # fmt: skip
    if not found:
        raise UserError(
            f"{where}: a record with {', '.join(map(str, record)) or 'nothing'}",
            rule=f"needs {what} under one of {', '.join(keys)}",
            fix="fix that line",
        )
    return found[0], record[found[0]]
