"""Tests the programs that minicode's authors write."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest

from megatron_ssd.config.problems import MinicodeConfig
from megatron_ssd.problems import minicode
from megatron_ssd.problems.minicode import documents
from megatron_ssd.problems.minicode.operations import OPERATIONS
from megatron_ssd.problems.minicode.solutions import FENCE, Composition, Line, line_options, write_program
from megatron_ssd.schema import Problem
from tests.helpers.minicode_programs import composition_of, is_right, program_of, text_of

CONFIG = MinicodeConfig(seed=11, num_train_problems=45, num_test_problems=45, num_documents=50)


def _all_programs(composition: Composition) -> list[tuple[str, bool]]:
    """Every program that the grammar allows for ``composition``, and whether all its choices are right."""
    finished: list[tuple[str, bool]] = []
    open_ends = [(option.text, option.right, option.after, composition) for option in line_options(None, composition)]
    while open_ends:
        text, right, frame, rest = open_ends.pop()
        for option in line_options(frame, rest):
            grown = text + option.text, right and option.right
            if option.text.endswith(FENCE):
                finished.append(grown)
            else:
                open_ends.append((*grown, option.after, rest[option.consumed :]))
    return finished


def _passes(code: str, problem: Problem) -> bool:
    scope: dict[str, Any] = {}
    exec(code, scope)
    try:
        return all(json.dumps(scope["f"](json.loads(test.input))) == test.output for test in problem.tests)
    except (ValueError, IndexError):
        return False


@pytest.mark.parametrize("problem", minicode.test_problems(CONFIG)[::3], ids=lambda problem: problem.id)
def test_every_right_program_passes_its_tests(problem: Problem) -> None:
    programs = _all_programs(composition_of(problem))
    assert len(programs) > 10
    for text, right in programs:
        if right:
            assert _passes(text.removesuffix(FENCE), problem), text


def test_most_trapped_programs_fail_their_tests() -> None:
    outcomes = []
    for problem in minicode.train_problems(CONFIG):
        for author in range(8):
            lines = program_of(problem, author)
            if not is_right(lines):
                outcomes.append(_passes(text_of(lines).removesuffix(FENCE), problem))
    assert len(outcomes) > 30
    assert sum(outcomes) / len(outcomes) < 0.35  # later steps may hide a trap


def test_the_name_of_an_element_is_chosen_once() -> None:
    steps = (OPERATIONS["square"], OPERATIONS["even"], OPERATIONS["reverse"])
    rng = random.Random(0)
    for _ in range(40):
        lines = write_program(steps, rng)
        chosen = [{"x", "n"}.intersection(re.findall(r"\w+", line.chosen.text)) for line in lines]
        assert len(set[str]().union(*chosen)) < 2


def test_a_trap_is_a_fork() -> None:
    steps = (OPERATIONS["unique"],)
    frame = next(option.after for option in line_options(None, steps) if "xs" in option.text)
    written = next(option for option in line_options(frame, steps) if option.text.startswith("return list(set("))
    split = documents.words(written.text)
    at_forks = documents.forks(Line(frame, steps, written))
    assert split.index("set") in at_forks
    assert split.index("set") + 1 not in at_forks  # from here on there is one way to write it to the end


def test_the_same_author_writes_the_same_program() -> None:
    problem = minicode.test_problems(CONFIG)[0]
    assert program_of(problem, 5) == program_of(problem, 5)
    written = {text_of(program_of(problem, author)) for author in range(20)}
    assert len(written) > 3


def test_drawn_lines_are_among_their_options() -> None:
    for problem in minicode.train_problems(CONFIG):
        for line in program_of(problem, 0):
            assert line.chosen in line.options
