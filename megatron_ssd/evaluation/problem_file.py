"""The file ``problems.jsonl`` of a benchmark, which shows the problems to readers of verdicts.

A record has the statement, the half of the problem, and the beginning and the end of every test. The full tests are
only in the benchmark, because one of LiveCodeBench can have megabytes. Grading does not use this file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.artifacts.jsonl import iter_jsonl
from megatron_ssd.errors import UserError
from megatron_ssd.evaluation.grid import Halves
from megatron_ssd.schema import CHECKED_FORMS, Problem, ProblemForm

PROBLEMS_FILE = "problems.jsonl"
TEST_CHARACTERS = 400  # of an input or an output
STATEMENT_CHARACTERS = 20_000

Half = Literal["selection", "reporting"]


class Excerpt(NamedTuple):
    """A text without ``left_out`` characters in its middle; a complete text is in ``head``.

    In JSON, a complete text is a string, and an excerpt is a list of the three fields.
    """

    head: str
    left_out: int = 0
    tail: str = ""

    @classmethod
    def of(cls, text: str, limit: int) -> Excerpt:
        """At most ``limit`` characters of ``text``, half from its beginning and half from its end."""
        return cls(text).shortened(limit)

    def shortened(self, limit: int) -> Excerpt:
        """The same text with at most ``limit`` characters."""
        excess = len(self.head) + len(self.tail) - limit
        if excess <= 0:
            return self
        end = limit // 2
        last = self.tail if self.left_out else self.head
        return Excerpt(self.head[: limit - end], self.left_out + excess, last[len(last) - end :])

    @classmethod
    def from_json(cls, value: Any) -> Excerpt:
        """The opposite of ``to_json``. Raises ``TypeError`` or ``ValueError`` for anything else."""
        if isinstance(value, str):
            return cls(value)
        head, left_out, tail = value
        return cls(str(head), int(left_out), str(tail))

    def to_json(self) -> str | list[str | int]:
        """A string or a list; see the class."""
        return self.head if not self.left_out else list(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortTest:
    """A test as ``schema.TestCase`` has it, each text cut to ``TEST_CHARACTERS``."""

    input: Excerpt
    output: Excerpt


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortProblem:
    """A record of the file."""

    id: str
    title: str
    form: ProblemForm
    difficulty: str | None
    date: str | None
    half: Half
    statement: Excerpt
    starter_code: str
    tests: tuple[ShortTest, ...]
    source: str = ""  # "" in files of earlier versions
    function_name: str | None = None


def write_problems(path: Path, problems: Sequence[Problem], halves: Halves) -> None:
    """Write the file, one record per problem in their order; ``halves`` are masks over them [P]."""
    records = [
        {
            **{name: value for name, value in problem.to_json().items() if name != "metadata"},
            # Texts of HumanEval and MBPP make no good title; the names of their functions do.
            "title": problem.title or (problem.function_name or "" if problem.form in CHECKED_FORMS else ""),
            "half": "reporting" if on_report else "selection",
            "statement": Excerpt.of(problem.statement, STATEMENT_CHARACTERS).to_json(),
            "tests": [
                {name: Excerpt.of(text, TEST_CHARACTERS).to_json() for name, text in test.to_json().items()}
                for test in problem.tests
            ],
        }
        for problem, on_report in zip(problems, halves.report.tolist(), strict=True)
    ]
    # ASCII: a statement or a test may hold half of a surrogate pair, which is not UTF-8.
    write_atomically(path, "".join(f"{json.dumps(record)}\n" for record in records))


def read_problems(path: Path) -> dict[str, ShortProblem]:
    """Records by problem id, in the order of the benchmark.

    Raises:
        UserError: the file is missing, or a record is from another version.
    """
    problems: dict[str, ShortProblem] = {}
    for number, record in enumerate(iter_jsonl(path), start=1):
        try:
            tests = tuple(
                ShortTest(**{name: Excerpt.from_json(text) for name, text in test.items()}) for test in record["tests"]
            )
            statement = Excerpt.from_json(record["statement"])
            problem = ShortProblem(**{**record, "statement": statement, "tests": tests})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}:{number}",
                rule=f"is not a problem of this version ({type(error).__name__}: {error})",
                fix=f"rename {path.parent} to {path.parent.name}.replaced-1 and run launch/evaluate.py again, which "
                "reuses its responses",
            ) from None
        problems[problem.id] = problem
    return problems
