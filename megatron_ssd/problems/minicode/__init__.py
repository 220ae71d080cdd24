"""Minicode: a small procedural world of Python problems that compose list operations.

See ``docs/results/minicode.md``. Everything depends on ``MinicodeConfig`` alone. Training problems, test problems and
corpus share no problem (``compositions``).
"""

from __future__ import annotations

import json
import random

from megatron_ssd.config.problems import MinicodeConfig
from megatron_ssd.errors import UserError, require
from megatron_ssd.problems.minicode.compositions import Split, draw_distinct, fingerprint, random_list, run
from megatron_ssd.problems.minicode.documents import LabelledDocument, corpus, labelled, statement
from megatron_ssd.problems.minicode.operations import OPERATIONS
from megatron_ssd.problems.minicode.solutions import Composition, Position
from megatron_ssd.schema import Problem, TestCase

__all__ = [
    "DIFFICULTIES",
    "LabelledDocument",
    "Position",
    "composition_of",
    "corpus",
    "document_with_labels",
    "test_problems",
    "train_problems",
]

DIFFICULTIES = {"easy": 2, "medium": 3, "hard": 4}  # steps


def train_problems(config: MinicodeConfig) -> list[Problem]:
    """``config.num_train_problems`` problems to sample; difficulties alternate until one has no more problems."""
    return _problems(config, "train", config.num_train_problems)


def test_problems(config: MinicodeConfig) -> list[Problem]:
    """``config.num_test_problems`` problems to evaluate; difficulties alternate until one has no more problems."""
    return _problems(config, "test", config.num_test_problems)


def document_with_labels(problem: Problem, seed: int) -> LabelledDocument:
    """One author's answer to a minicode problem, with a label for each position."""
    return labelled(composition_of(problem), random.Random(f"minicode author {seed} {problem.id}"))


def composition_of(problem: Problem) -> Composition:
    """The steps of a minicode problem. Raises ``UserError`` for any other problem."""
    if "steps" not in problem.metadata:
        raise UserError(f"problem {problem.id}", rule="is not a minicode problem", fix="labels exist for minicode only")
    return tuple(OPERATIONS[name] for name in problem.metadata["steps"])


def _problems(config: MinicodeConfig, split: Split, count: int) -> list[Problem]:
    draws = {
        difficulty: draw_distinct(
            random.Random(f"minicode {split} {difficulty} {config.seed}"), steps, split, config.seed
        )
        for difficulty, steps in DIFFICULTIES.items()
    }
    seen: set[str] = set()
    problems: list[Problem] = []
    while draws and len(problems) < count:
        for difficulty in list(draws):
            # A longer composition may compute the same function as a shorter one.
            composition = next((found for found in draws[difficulty] if fingerprint(found) not in seen), None)
            if composition is None:
                del draws[difficulty]
                continue
            seen.add(fingerprint(composition))
            problems.append(_problem(composition, split, difficulty, config.tests_per_problem))
    require(count <= len(problems), f"minicode.num_{split}_problems = {count}",
            rule=f"this world has {len(problems)} of them", fix="ask for fewer")  # fmt: skip
    return problems[:count]


def _problem(composition: Composition, split: Split, difficulty: str, num_tests: int) -> Problem:
    identity = fingerprint(composition)
    rng = random.Random(f"minicode tests {identity}")
    inputs: list[list[int]] = [[], *(random_list(rng) for _ in range(num_tests - 1))]
    return Problem(
        id=f"minicode-{split}-{identity[:16]}",
        source="minicode",
        statement=statement(composition),
        form="function",
        function_name="f",
        difficulty=difficulty,
        tests=tuple(TestCase(input=json.dumps(xs), output=json.dumps(run(composition, xs))) for xs in inputs),
        metadata={"steps": [step.name for step in composition]},
    )
