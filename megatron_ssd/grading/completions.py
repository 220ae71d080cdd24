"""Reads programs from files of completions.

A line is a JSON object with an id (``question_id``, ``task_id`` or ``problem_id``) and one text. Lines of the same
problem are its samples 0, 1, ... in the order of the file.
- ``code`` is the program as it is.
- ``response`` is a chat model's answer: the program is what ``extract_code`` finds in it, or none.
- ``completion`` is either: the program that ``extract_code`` finds, or the text itself if it finds none.

For HumanEval, ``completion`` and ``response`` then go through ``program_from_completion``: a text that defines the
entry point is a program by itself, any other text continues the prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.jsonl import iter_jsonl
from megatron_ssd.errors import UserError
from megatron_ssd.grading.pool import Submission
from megatron_ssd.problems.humaneval import program_from_completion
from megatron_ssd.prompts.extract import extract_code
from megatron_ssd.schema import Problem

ID_KEYS = ("question_id", "task_id", "problem_id")
TEXT_KEYS = ("completion", "code", "response")


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
        source = program_of(key, text, problems[problem_id])
        yield Submission(problem_id=problem_id, sample_index=seen[problem_id], source=source)
        seen[problem_id] += 1


def program_of(key: str, text: str, problem: Problem) -> str | None:
    """The program in ``text``, the value of ``key`` in a line; see the module. None if there is no program."""
    if key == "code":
        return text if text.strip() else None
    source = extract_code(text)
    if source is None and key == "completion":
        source = text
    if source is None or problem.source not in ("humaneval", "humaneval_plus"):
        return source if source and source.strip() else None
    return program_from_completion(problem, source)


def _records(path: Path, problems: Mapping[str, Problem]) -> Iterator[tuple[str, str, str]]:
    """(problem id, key of the text, text) of each line."""
    for number, record in enumerate(iter_jsonl(path), start=1):
        where = f"{path}:{number}"
        identity = str(_one(record, ID_KEYS, where, "an id"))
        key = next((name for name in TEXT_KEYS if name in record), "")
        text = _one(record, TEXT_KEYS, where, "a text")
        if not isinstance(text, str):
            raise UserError(f"{where}: {key} = {str(text)[:60]!r}", rule="must be text", fix="fix that line")
        if identity not in problems:
            raise UserError(
                f"{where}: {identity}",
                rule="is not a problem of the benchmark's file or window",
                fix=f"its {len(problems)} problems have ids like {next(iter(problems))}",
            )
        yield identity, key, text


def _one(record: dict[str, Any], keys: tuple[str, ...], where: str, what: str) -> Any:
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
    return record[found[0]]
