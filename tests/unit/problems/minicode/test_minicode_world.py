"""Tests minicode's problems, their splits, and its noisy corpus."""

from __future__ import annotations

import dataclasses
import random

import pytest

from megatron_ssd.config.problems import MinicodeConfig
from megatron_ssd.errors import UserError
from megatron_ssd.problems import minicode
from megatron_ssd.problems.minicode import documents
from megatron_ssd.problems.minicode.compositions import draw, fingerprint, is_sound, split_of
from megatron_ssd.problems.minicode.documents import statement
from megatron_ssd.problems.minicode.operations import OPERATIONS
from megatron_ssd.problems.minicode.solutions import write_program
from megatron_ssd.schema import Problem

CONFIG = MinicodeConfig(seed=7, num_train_problems=300, num_test_problems=90, num_documents=400)


def test_the_three_sets_share_no_problem() -> None:
    fingerprints = {
        split: {fingerprint(minicode.composition_of(problem)) for problem in problems}
        for split, problems in (("train", minicode.train_problems(CONFIG)), ("test", minicode.test_problems(CONFIG)))
    }
    rng = random.Random(0)
    fingerprints["corpus"] = {fingerprint(draw(rng, length, "corpus", 7)) for length in (1, 2, 3, 4) for _ in range(80)}
    assert len(fingerprints["train"]) == 300
    assert len(fingerprints["test"]) == 90
    assert fingerprints["train"].isdisjoint(fingerprints["test"])
    assert fingerprints["corpus"].isdisjoint(fingerprints["train"] | fingerprints["test"])


def test_corpus_documents_belong_to_the_corpus() -> None:
    steps = {operation.wording: operation for operation in OPERATIONS.values()}
    for document in minicode.corpus(CONFIG):
        composition = tuple(steps[wording] for wording in document.prompt.split(", "))
        assert split_of(composition, CONFIG.seed) == "corpus"
        assert is_sound(composition)


def test_compositions_that_compute_the_same_are_the_same_problem() -> None:
    assert fingerprint((OPERATIONS["negate"], OPERATIONS["square"])) == fingerprint((OPERATIONS["square"],))
    assert fingerprint((OPERATIONS["sort"], OPERATIONS["even"])) == fingerprint(
        (OPERATIONS["even"], OPERATIONS["sort"])
    )
    assert fingerprint((OPERATIONS["reverse"], OPERATIONS["even"])) != fingerprint(
        (OPERATIONS["even"], OPERATIONS["sort"])
    )


def test_a_step_that_does_nothing_is_not_sound() -> None:
    assert is_sound((OPERATIONS["reverse"], OPERATIONS["even"]))
    assert not is_sound((OPERATIONS["even"], OPERATIONS["even"]))
    assert not is_sound((OPERATIONS["absolute"], OPERATIONS["square"]))


def test_shares_of_the_splits() -> None:
    rng = random.Random(1)
    steps = [operation for operation in OPERATIONS.values() if operation.kind != "reduce"]
    drawn = (tuple(rng.choice(steps) for _ in range(4)) for _ in range(4000))
    found = [split_of(composition, 0) for composition in drawn if is_sound(composition)]
    assert found.count("test") / len(found) == pytest.approx(0.1, abs=0.03)
    assert found.count("train") / len(found) == pytest.approx(0.3, abs=0.04)


def test_problems_and_corpus_depend_only_on_the_seed() -> None:
    assert minicode.test_problems(CONFIG) == minicode.test_problems(CONFIG)
    assert list(minicode.corpus(CONFIG)) == list(minicode.corpus(CONFIG))
    other = dataclasses.replace(CONFIG, seed=8)
    assert {p.id for p in minicode.test_problems(other)} != {p.id for p in minicode.test_problems(CONFIG)}
    fewer = dataclasses.replace(CONFIG, num_test_problems=30)
    assert minicode.test_problems(fewer) == minicode.test_problems(CONFIG)[:30]


def test_problems_are_complete() -> None:
    problems = minicode.test_problems(CONFIG)
    assert [problem.difficulty for problem in problems[:4]] == ["easy", "medium", "hard", "easy"]
    for problem in problems:
        steps = minicode.composition_of(problem)
        assert len(steps) == minicode.DIFFICULTIES[problem.difficulty or ""]
        assert problem.statement == statement(steps)
        assert len(problem.tests) == CONFIG.tests_per_problem
        assert len({test.output for test in problem.tests}) > 1
        assert Problem.from_json(problem.to_json()) == problem


def test_labels_are_refused_for_other_problems() -> None:
    with pytest.raises(UserError, match="is not a minicode problem"):
        minicode.document_with_labels(Problem(id="p", source="s", statement="", form="stdin"), 0)


def test_slips_occur_only_at_locks_and_at_the_stated_rate() -> None:
    rng = random.Random(3)
    num_slips = num_locks = 0
    for _ in range(1500):
        lines = write_program(draw(rng, 3, "corpus", 0), rng)
        positions = [position for line in lines for position in documents.label(line, documents.words)]
        written = documents.words(documents.write_with_slips(lines, rng, 1.0))
        if len(written) != len(positions):  # a slip may join two words: x and y become xy
            continue
        for position, word in zip(positions, written, strict=True):
            changed = word != position.unit
            assert not changed or position.kind == "lock"
            num_slips += changed
            num_locks += position.kind == "lock"
    assert 0.036 < num_slips / num_locks < 0.10


def test_no_slips_at_scale_zero() -> None:
    rng = random.Random(3)
    for _ in range(50):
        lines = write_program(draw(rng, 3, "corpus", 0), rng)
        assert documents.write_with_slips(lines, rng, 0.0) == "".join(line.chosen.text for line in lines)


def test_words_join_to_the_text() -> None:
    text = "def f(xs):\n    ys = [x ** 2 for x in xs if x % 3 != 0]\n    return ys[::-1]\n```"
    assert "".join(documents.words(text)) == text
    assert documents.words("x <= 10)\n        ") == ("x", " <=", " 10", ")", "\n        ")


def test_more_problems_than_exist_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minicode, "DIFFICULTIES", {"easy": 1})
    with pytest.raises(UserError, match=r"minicode\.num_test_problems = 90: this world has \d of them; ask for fewer"):
        minicode.test_problems(CONFIG)
