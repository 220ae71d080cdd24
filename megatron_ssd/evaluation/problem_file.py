"""``eval/problems.jsonl``: what a reader of verdicts wants to know of each problem, and no more.

A row has the statement, the half that the problem is in, and of every test the beginning and the end. Whole tests stay
with the benchmark: those of LiveCodeBench are megabytes each. The file is for readers; nothing is graded by it.
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
from megatron_ssd.schema import Problem, ProblemForm

PROBLEMS_FILE = "problems.jsonl"
TEST_CHARACTERS = 400  # of an input or an output
STATEMENT_CHARACTERS = 20_000

Half = Literal["selection", "reporting"]


class Excerpt(NamedTuple):
    """A text without its middle, of which ``left_out`` characters are missing; all of it is in ``head`` where none is.

    As JSON it is a string where it is whole, and the list of the three where it is not.
    """

    head: str
    left_out: int = 0
    tail: str = ""

    @classmethod
    def of(cls, text: str, limit: int) -> Excerpt:
        """At most ``limit`` characters of ``text``, as many of its beginning as of its end."""
        return cls(text).shortened(limit)

    def shortened(self, limit: int) -> Excerpt:
        """The same text with at most ``limit`` characters kept."""
        excess = len(self.head) + len(self.tail) - limit
        if excess <= 0:
            return self
        end = limit // 2
        last = self.tail if self.left_out else self.head
        return Excerpt(self.head[: limit - end], self.left_out + excess, last[len(last) - end :])

    @classmethod
    def from_json(cls, value: Any) -> Excerpt:
        """As ``to_json`` wrote it. Raises ``TypeError`` or ``ValueError`` for anything else."""
        if isinstance(value, str):
            return cls(value)
        head, left_out, tail = value
        return cls(str(head), int(left_out), str(tail))

    def to_json(self) -> str | list[str | int]:
        """See the class."""
        return self.head if not self.left_out else list(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortTest:
    """A test as ``schema.TestCase`` has it, each text cut to ``TEST_CHARACTERS``."""

    input: Excerpt
    output: Excerpt


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortProblem:
    """A row of the file."""

    id: str
    title: str
    form: ProblemForm
    difficulty: str | None
    date: str | None
    half: Half
    statement: Excerpt
    starter_code: str
    tests: tuple[ShortTest, ...]


def write_problems(path: Path, problems: Sequence[Problem], halves: Halves) -> None:
    """Write the file, a row for each of ``problems`` in their order; ``halves`` are masks over them [P]."""
    rows = [
        {
            "id": problem.id,
            "title": problem.title,
            "form": problem.form,
            "difficulty": problem.difficulty,
            "date": problem.date,
            "half": "reporting" if on_report else "selection",
            "statement": Excerpt.of(problem.statement, STATEMENT_CHARACTERS).to_json(),
            "starter_code": problem.starter_code,
            "tests": [
                {name: Excerpt.of(text, TEST_CHARACTERS).to_json() for name, text in test.to_json().items()}
                for test in problem.tests
            ],
        }
        for problem, on_report in zip(problems, halves.report.tolist(), strict=True)
    ]
    # ASCII: a statement or a test may hold half of a surrogate pair, which is no UTF-8.
    write_atomically(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def read_problems(path: Path) -> dict[str, ShortProblem]:
    """Rows by problem id, in the order of the benchmark.

    Raises:
        UserError: the file is missing, or a row is not as ``write_problems`` writes it.
    """
    problems: dict[str, ShortProblem] = {}
    for number, row in enumerate(iter_jsonl(path), start=1):
        try:
            tests = tuple(
                ShortTest(**{name: Excerpt.from_json(text) for name, text in test.items()}) for test in row["tests"]
            )
            statement = Excerpt.from_json(row["statement"])
            problem = ShortProblem(**{**row, "statement": statement, "tests": tests})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}:{number}",
                rule=f"is no problem of this version ({type(error).__name__}: {error})",
                fix="run launch/evaluate.py again with replace=true",
            ) from None
        problems[problem.id] = problem
    return problems
