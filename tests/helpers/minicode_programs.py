"""Programs that authors of minicode write for a problem."""

from __future__ import annotations

import random

from megatron_ssd.problems.minicode.operations import OPERATIONS
from megatron_ssd.problems.minicode.solutions import Composition, Line, write_program
from megatron_ssd.schema import Problem


def composition_of(problem: Problem) -> Composition:
    """The steps of a problem."""
    return tuple(OPERATIONS[name] for name in problem.metadata["steps"])


def program_of(problem: Problem, author: int) -> tuple[Line, ...]:
    """The program of one author."""
    return write_program(composition_of(problem), random.Random(f"{author} {problem.id}"))


def text_of(lines: tuple[Line, ...]) -> str:
    """A program with its closing fence."""
    return "".join(line.chosen.text for line in lines)


def is_right(lines: tuple[Line, ...]) -> bool:
    """Whether a program has no trap."""
    return all(line.chosen.right for line in lines)
