"""Tests minicode's programs and the labels of their tokens."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from megatron_ssd.config.problems import MinicodeConfig
from megatron_ssd.problems import minicode
from megatron_ssd.problems.minicode import documents
from megatron_ssd.problems.minicode.documents import labelled
from megatron_ssd.problems.minicode.operations import OPERATIONS
from megatron_ssd.problems.minicode.solutions import FENCE, Composition, Line, label, line_options
from megatron_ssd.schema import Problem

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
    programs = _all_programs(minicode.composition_of(problem))
    assert len(programs) > 10
    for text, right in programs:
        if right:
            assert _passes(text.removesuffix(FENCE), problem), text


def test_most_trapped_programs_fail_their_tests() -> None:
    outcomes = []
    for problem in minicode.train_problems(CONFIG):
        for author in range(8):
            document = minicode.document_with_labels(problem, author)
            if not document.is_right:
                code = document.response.removeprefix("```python\n").removesuffix(FENCE)
                outcomes.append(_passes(code, problem))
    assert len(outcomes) > 30
    assert sum(outcomes) / len(outcomes) < 0.35  # later steps may hide a trap


def test_names_are_locks_once_they_are_bound() -> None:
    steps = (OPERATIONS["square"], OPERATIONS["even"], OPERATIONS["reverse"])
    rng = random.Random(0)
    for _ in range(40):
        document = labelled(steps, rng)
        positions = list(document.positions(documents.words))
        names = [position for position in positions if str(position.unit).strip() in ("x", "n", "v")]
        # The element's name is chosen once; a later fork is about the expression, never about the name.
        assert all({str(unit).strip() for unit in later.options}.isdisjoint({"x", "n", "v"} - {str(later.unit).strip()})
                   for later in names[1:] if later.kind == "fork")  # fmt: skip


def test_a_trap_is_a_fork_with_one_viable_option() -> None:
    steps = (OPERATIONS["unique"],)
    frame = next(option.after for option in line_options(None, steps) if "xs" in option.text)
    written = next(option for option in line_options(frame, steps) if option.text.startswith("return list(set("))
    positions = list(label(Line(frame, steps, written), documents.words))
    trap = next(position for position in positions if position.unit == "set")
    assert trap.kind == "fork"
    assert trap.options == {"set", "dict"}
    assert trap.viable == {"dict"}
    # From here on the program is wrong: there is one way to write it to the end, which is not viable.
    after = positions[positions.index(trap) + 1]
    assert after.kind == "lock"
    assert after.viable == frozenset()


def test_labels_cover_the_response_exactly() -> None:
    for problem in minicode.test_problems(CONFIG):
        document = minicode.document_with_labels(problem, 3)
        positions = list(document.positions(documents.words))
        assert "".join(str(position.unit) for position in positions) == document.response
        for position in positions:
            assert position.kind == "other" or position.unit in position.options
            assert position.viable <= position.options
            assert (position.kind == "fork") == (len(position.options) > 1)


def test_the_same_author_writes_the_same_program() -> None:
    problem = minicode.test_problems(CONFIG)[0]
    assert minicode.document_with_labels(problem, 5) == minicode.document_with_labels(problem, 5)
    written = {minicode.document_with_labels(problem, author).response for author in range(20)}
    assert len(written) > 3


def test_drawn_lines_are_among_their_options() -> None:
    for problem in minicode.train_problems(CONFIG):
        for line in minicode.document_with_labels(problem, 0).lines:
            assert line.chosen in line.options
