"""Computes statistics of scores over problems: pass@k, bootstrap intervals, sign tests.

Scores of a model under one setting are an array over problems [P], NaN if a problem has too few samples for k. All
uncertainty is over problems: samples of the same problem are not independent, and pass@k over them is already an exact
mean. Intervals are percentile bootstrap intervals and depend only on data, confidence and seed. If all problems have
the same score, the interval has no width, which says nothing about other problems.

A difference also has a sign test, which assumes less: it counts the problems on which one of two is ahead, by any
amount.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from megatron_ssd.config.evaluation import EvaluationConfig
from megatron_ssd.schema import Verdict

Scores = npt.NDArray[np.float64]  # [P]
Mask = npt.NDArray[np.bool_]  # [P]
_CHUNK = 2_000_000  # drawn indices that are in memory at a time
_TIE = 1e-9  # pass@k of equal shares of different numbers of programs differs by rounding


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over ``num_problems`` problems, or a difference of means, and its interval; NaN if nothing was measured.

    ``num_problems`` is 0 if it was read from a file of a version that did not record it.
    """

    value: float
    low: float
    high: float
    num_problems: int = 0

    @property
    def is_known(self) -> bool:
        """Whether anything was measured."""
        return not math.isnan(self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """Settings of the intervals: ``num_resamples`` draws of problems with replacement, from ``seed``."""

    confidence: float = 0.95
    num_resamples: int = 10_000
    seed: int = 0

    def mean(self, scores: Scores) -> Estimate:
        """Mean of ``scores`` [P] over the problems that have a score. All values are NaN if none has."""
        known = scores[~np.isnan(scores)]
        return self._estimate(known.mean() if len(known) else np.nan, self._means(known, 0), len(known))

    @classmethod
    def of(cls, evaluation: EvaluationConfig, *, seed: int) -> Self:
        """The settings of a run's evaluation, with the run's seed."""
        return cls(confidence=evaluation.confidence, num_resamples=evaluation.bootstrap_samples, seed=seed)

    def difference(self, scores: Scores, others: Scores) -> Estimate:
        """Mean of ``scores - others`` [P], paired by problem."""
        return self.mean(scores - others)

    def contrast(self, scores: Scores, others: Scores) -> Estimate:
        """Difference of the means of two disjoint sets of problems, resampled independently."""
        first, second = scores[~np.isnan(scores)], others[~np.isnan(others)]
        if not len(first) or not len(second):
            return self._estimate(np.nan, np.full(1, np.nan), 0)
        draws = self._means(first, 0) - self._means(second, 1)
        return self._estimate(first.mean() - second.mean(), draws, len(first) + len(second))

    def _means(self, known: Scores, stream: int) -> Scores:
        """Means of all resamples [num_resamples]."""
        if not len(known):
            return np.full(1, np.nan)
        rng = np.random.default_rng([self.seed, stream])
        size = max(1, _CHUNK // len(known))
        counts = [min(size, self.num_resamples - start) for start in range(0, self.num_resamples, size)]
        return np.concatenate(
            [known[rng.integers(len(known), size=(count, len(known)))].mean(axis=1) for count in counts]
        )

    def _estimate(self, value: float, draws: Scores, num_problems: int) -> Estimate:
        tail = 50 * (1 - self.confidence)
        low, high = np.percentile(draws, [tail, 100 - tail])
        return Estimate(value=float(value), low=float(low), high=float(high), num_problems=num_problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignTest:
    """Problems on which the first of two is ahead, behind or tied, and the p value of such a split.

    The p value is exact and two-sided: the probability that a fair coin, tossed once per problem without a tie, falls
    at least as unevenly. It is 1 if all problems are tied.
    """

    ahead: int
    behind: int
    tied: int
    p_value: float


def sign_test(scores: Scores, others: Scores) -> SignTest:
    """Sign test of ``scores`` against ``others`` [P], paired by problem. Problems that lack a score are left out."""
    difference = (scores - others)[~np.isnan(scores - others)]
    ahead, behind = int((difference > _TIE).sum()), int((difference < -_TIE).sum())
    tosses = ahead + behind
    at_least_as_uneven = 2 * sum(math.comb(tosses, heads) for heads in range(min(ahead, behind) + 1))
    return SignTest(
        ahead=ahead,
        behind=behind,
        tied=len(difference) - tosses,
        p_value=min(1.0, at_least_as_uneven / 2**tosses),  # of integers, so rounded only once
    )


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k samples, drawn from n of which c pass, passes: 1 - C(n-c, k) / C(n, k).

    The unbiased estimator of Chen et al., 2021 (arXiv 2107.03374), as a product. Needs k <= n.
    """
    assert 0 <= c <= n, (n, c)
    assert 1 <= k <= n, (n, k)
    miss = 1.0
    for i in range(k):
        miss *= max(0, n - c - i) / (n - i)
    return 1.0 - miss


def problem_scores(
    verdicts: Iterable[Verdict],
    problem_ids: Sequence[str],
    k: int,
    *,
    passed: Callable[[Verdict], bool] = lambda verdict: verdict.passed,
) -> Scores:
    """pass@k of each problem [P], in the order of ``problem_ids``.

    Samples on which the checker failed are left out, not counted as wrong. A problem with fewer than k others is NaN.
    ``passed`` says which of the others count as passing.
    """
    index_of = {problem_id: index for index, problem_id in enumerate(problem_ids)}
    counted = np.zeros(len(index_of), dtype=int)
    successes = np.zeros(len(index_of), dtype=int)
    for verdict in verdicts:
        if verdict.status != "infrastructure_error":
            counted[index_of[verdict.problem_id]] += 1
            successes[index_of[verdict.problem_id]] += passed(verdict)
    return np.array(
        [pass_at_k(int(n), int(c), k) if n >= k else np.nan for n, c in zip(counted, successes, strict=True)]
    )


def no_code_causes(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """Number of verdicts ``no_code`` by cause, the most frequent cause first."""
    details = (verdict.detail for verdict in verdicts if verdict.status == "no_code")
    causes = Counter(detail.partition(":")[0] for detail in details)  # "not run: ..." has a reason of its own
    return dict(sorted(causes.items(), key=lambda item: (-item[1], item[0])))
