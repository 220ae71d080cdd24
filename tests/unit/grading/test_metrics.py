"""Tests for the statistics of pass@k."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ssd.grading.metrics import Bootstrap, pass_at_k, problem_scores, sign_test
from megatron_ssd.schema import Verdict, VerdictStatus

BOOTSTRAP = Bootstrap(num_resamples=2000)


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_equals_enumeration(n: int):
    for c in range(n + 1):
        passed = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            groups = list(itertools.combinations(passed, k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, groups)) / len(groups), abs=1e-12)


@given(st.integers(1, 400), st.data())
def test_pass_at_k_equals_its_formula(n: int, data: st.DataObject):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    assert pass_at_k(n, c, k) == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k), abs=1e-9)


def verdicts(problem: str, *statuses: VerdictStatus) -> list[Verdict]:
    return [Verdict(problem_id=problem, sample_index=i, status=status) for i, status in enumerate(statuses)]


def test_there_is_one_score_per_problem_in_the_given_order():
    found = verdicts("b", "passed", "wrong_answer") + verdicts("a", "passed", "passed")
    assert problem_scores(found, ["a", "b"], 1).tolist() == [1.0, 0.5]
    assert problem_scores(found, ["a", "b"], 2).tolist() == [1.0, 1.0]


def test_an_infrastructure_error_does_not_count_as_a_wrong_answer():
    found = verdicts("a", "passed", "infrastructure_error") + verdicts("b", "infrastructure_error", "timeout")
    assert problem_scores(found, ["a", "b"], 1).tolist() == [1.0, 0.0]
    assert np.isnan(problem_scores(found, ["a", "b"], 2)).all()


def test_problems_without_a_score_are_left_out_and_counted():
    estimate = BOOTSTRAP.mean(np.array([1.0, np.nan, 0.0, np.nan]))
    assert (estimate.value, estimate.num_problems) == (0.5, 2)


def test_an_estimate_without_known_scores_is_nan():
    estimate = BOOTSTRAP.mean(np.array([np.nan]))
    assert math.isnan(estimate.value)
    assert math.isnan(BOOTSTRAP.contrast(np.array([np.nan]), np.array([1.0])).low)


def test_the_same_data_gives_the_same_interval():
    scores = np.random.default_rng(1).random(50)
    assert BOOTSTRAP.mean(scores) == BOOTSTRAP.mean(scores)
    assert BOOTSTRAP.mean(scores) != Bootstrap(num_resamples=2000, seed=1).mean(scores)


def test_the_interval_agrees_with_the_standard_error():
    scores = np.random.default_rng(2).random(400)
    estimate = Bootstrap(num_resamples=10_000).mean(scores)
    error = scores.std() / math.sqrt(400)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert estimate.low < scores.mean() < estimate.high


def test_intervals_contain_the_true_mean_as_often_as_their_confidence():
    rng = np.random.default_rng(3)
    estimates = [Bootstrap(num_resamples=400, seed=i).mean(rng.random(60)) for i in range(300)]
    covered = sum(estimate.low <= 0.5 <= estimate.high for estimate in estimates) / 300
    assert 0.90 < covered < 0.99


def test_pairing_removes_the_spread_of_problem_difficulty():
    difficulty = np.random.default_rng(4).random(100)
    better = difficulty + 0.05
    paired = BOOTSTRAP.difference(better, difficulty)
    assert paired.low == pytest.approx(0.05)
    assert BOOTSTRAP.contrast(better, difficulty).low < 0


def test_a_higher_confidence_gives_a_wider_interval():
    scores = np.random.default_rng(5).random(80)
    wide, narrow = (Bootstrap(num_resamples=2000, confidence=c).mean(scores) for c in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_the_chunk_size_does_not_change_the_interval(monkeypatch: pytest.MonkeyPatch):
    scores = np.random.default_rng(6).random(30)
    full = BOOTSTRAP.mean(scores)
    monkeypatch.setattr("megatron_ssd.grading.metrics._CHUNK", 100)
    assert BOOTSTRAP.mean(scores) == full


def p_by_enumeration(ahead: int, behind: int) -> float:
    """The share of all sequences of tosses of a fair coin that are at least as uneven as the observed one."""
    observed = abs(ahead - behind)
    sequences = list(itertools.product((1, -1), repeat=ahead + behind))
    return sum(abs(sum(tosses)) >= observed for tosses in sequences) / len(sequences)


def split_scores(ahead: int, behind: int, tied: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two models, of which the first is ahead, behind or tied on that many problems, in some order."""
    signs = np.random.default_rng(7).permutation([1.0] * ahead + [-1.0] * behind + [0.0] * tied)
    others = np.random.default_rng(8).integers(3, 8, len(signs)) / 10
    return others + 0.1 * signs, others


@pytest.mark.parametrize("tosses", range(12))
def test_the_sign_test_equals_enumeration(tosses: int):
    for ahead in range(tosses + 1):
        found = sign_test(*split_scores(ahead, tosses - ahead, 3))
        assert (found.ahead, found.behind, found.tied) == (ahead, tosses - ahead, 3)
        assert found.p_value == pytest.approx(p_by_enumeration(ahead, tosses - ahead), abs=1e-12)


@settings(max_examples=40)
@given(st.integers(0, 700), st.integers(0, 700))
def test_the_sign_test_equals_scipys_binomial_test(ahead: int, behind: int):
    stats = pytest.importorskip("scipy.stats")
    found = sign_test(*split_scores(ahead, behind, 0))
    expected = stats.binomtest(ahead, ahead + behind).pvalue if ahead + behind else 1.0
    assert found.p_value == pytest.approx(expected, rel=1e-6)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=40))
def test_the_sign_test_is_symmetric(pairs: list[tuple[int, int]]):
    ours, theirs = (np.array([pair[side] / 6 for pair in pairs]) for side in (0, 1))
    there, back = sign_test(ours, theirs), sign_test(theirs, ours)
    assert (there.ahead, there.behind, there.tied) == (back.behind, back.ahead, back.tied)
    assert there.ahead == sum(a > b for a, b in pairs)
    assert there.p_value == back.p_value
    assert 0 < there.p_value <= 1


def test_scores_that_differ_by_rounding_are_tied():
    # C(6, 2) / C(15, 2) and C(3, 2) / C(7, 2) are both a seventh.
    ours, theirs = np.array([pass_at_k(15, 9, 2)]), np.array([pass_at_k(7, 4, 2)])
    assert ours[0] != theirs[0]
    assert sign_test(ours, theirs).tied == 1


def test_the_sign_test_leaves_out_problems_without_a_score():
    found = sign_test(np.array([1.0, np.nan, 0.5, 0.2]), np.array([0.0, 0.0, np.nan, 0.2]))
    assert (found.ahead, found.behind, found.tied, found.p_value) == (1, 0, 1, 1.0)
    assert sign_test(np.array([np.nan]), np.array([1.0])).p_value == 1.0


def test_equal_models_rarely_have_a_small_p_value():
    """At most 5 % of p values are at or below 0.05 (fewer, since p is discrete)."""
    rng = np.random.default_rng(9)
    found = [sign_test(rng.random(60), rng.random(60)).p_value for _ in range(2000)]
    assert 0.01 < np.mean(np.array(found) <= 0.05) < 0.065
