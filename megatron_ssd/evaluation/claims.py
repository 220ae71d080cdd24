"""Tests the claims of the paper on the scores of this run.

Each claim becomes differences that are above zero if it holds, measured on the reporting half. A claim is ``shown`` if
the interval of each difference is above zero, ``not shown`` if one is below, and otherwise ``unclear``. A claim that
this run cannot test is not listed. Evidence contains no NaN: a score that is missing because the checker failed is
called not measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np

from megatron_ssd.config.generation import SamplingConfig, SamplingParams
from megatron_ssd.evaluation.grid import Measurements, hottest
from megatron_ssd.evaluation.results import Claim, ClaimStatus, ModelName
from megatron_ssd.formatting import NOT_MEASURED, counted, signed
from megatron_ssd.grading.metrics import Estimate, Scores

_PAPERS_K = 5  # the larger k of the paper's tables
_MIN_PROBLEMS = 2  # the interval of a single problem has no width
_NO_SCORES: Scores = np.empty(0)
RULE = (
    "shown: the interval of the difference is above zero; not shown: it is below zero; unclear: it contains zero, or "
    "fewer than two problems were measured. A claim of a larger gain also needs the gain itself to be above zero. "
    "Differences are paired by problem and measured on the half of the problems on which no setting was chosen."
)


def check_claims(found: Measurements, sampling: SamplingConfig) -> list[Claim]:
    """Each claim that the scores of base and tuned model can test."""
    return _Claims(found, sampling).all()


def status_of(*differences: Estimate) -> ClaimStatus:
    """The status of a claim, which is unclear if bounds are NaN (the checker failed) or problems are too few."""
    if any(difference.num_problems < _MIN_PROBLEMS for difference in differences):
        return "unclear"
    if all(difference.low > 0 for difference in differences):
        return "shown"
    return "not shown" if any(difference.high < 0 for difference in differences) else "unclear"


class _Claims:
    def __init__(self, found: Measurements, sampling: SamplingConfig) -> None:
        self._found, self._sampling = found, sampling
        self._first, self._last = found.ks[0], _PAPERS_K if _PAPERS_K in found.ks else found.ks[-1]
        self._ssd = found.best("ssd")

    def all(self) -> list[Claim]:
        default, train, best = self._sampling.default, self._sampling.train, self._found.best("base")
        claims = [
            self._ahead_of(default, "SSD solves more than its base at the default decode of the base."),
            self._ahead_of(best, "SSD solves more than the base at the best decode setting of the base."),
            self._ahead_of(
                train,
                "SSD solves more than the base decoded exactly as the training data were sampled (a baseline that the "
                "paper does not have).",
            ),
            self._matched(),
            *([self._more_at_large_k()] if self._last > self._first else []),
            *self._more_on_hard(),
            *([self._degrades_less()] if len(self._found.cells) > 1 else []),
        ]
        if train.temperature >= 2 and train.top_k == -1 and train.top_p == 1:
            claims.append(
                self._ahead_of(
                    default, "Even training data sampled at high temperature without truncation improves the model."
                )
            )
        return claims

    def _scores(self, model: ModelName, decoding: SamplingParams, k: int) -> Scores:
        """pass@k on the reporting half."""
        return self._found.scores(model, decoding.label, k)[self._found.halves.report]

    def _ahead_of(self, decoding: SamplingParams, text: str) -> Claim:
        ours, theirs = self._scores("ssd", self._ssd, self._first), self._scores("base", decoding, self._first)
        difference = self._found.bootstrap.difference(ours, theirs)
        evidence = (
            f"pass@{self._first} {_percent(ours)} (SSD, {self._ssd.label}) against {_percent(theirs)} "
            f"(base, {decoding.label}): {_points(difference)}"
        )
        return Claim(text=text, status=status_of(difference), evidence=evidence)

    def _matched(self) -> Claim:
        """The mean over the grid hides where a gain comes from, so the evidence also describes the cells."""
        cells = self._found.cells
        base = [self._scores("base", cell, self._first) for cell in cells]
        gains = [self._scores("ssd", cell, self._first) - one for cell, one in zip(cells, base, strict=True)]
        difference = self._found.bootstrap.mean(np.mean(gains, axis=0))
        means = [(_mean(one), _mean(gain)) for one, gain in zip(base, gains, strict=True)]
        evidence = f"pass@{self._first}, mean over the grid: {_points(difference)}"
        return Claim(
            text="With the same decode setting for both, SSD solves more than its base.",
            status=status_of(difference),
            evidence="; ".join(
                [evidence, *self._by_cell([(one, gain) for one, gain in means if not math.isnan(gain)])]
            ),
        )

    def _by_cell(self, measured: Sequence[tuple[float, float]]) -> list[str]:
        """From (base score, gain) of each cell: the range of the gain, and its mean where the base breaks down."""
        if not measured:
            return []
        gains = [gain for _, gain in measured]
        ahead = f"ahead in {sum(gain > 0 for gain in gains)} of {counted(len(gains), 'cell')}"
        sentences = [f"{ahead}, by {signed(min(gains))} to {signed(max(gains))}"]
        half = _mean(self._scores("base", self._found.best("base"), self._first)) / 2
        broken, others = ([gain for base, gain in measured if (base < half) == low] for low in (True, False))
        if broken and others:
            sentences.append(
                f"mean {signed(fmean(broken))} in the {counted(len(broken), 'cell')} where the base has less than half "
                f"of its best, {signed(fmean(others))} in the other {len(others)}"
            )
        return sentences

    def _more_at_large_k(self) -> Claim:
        gains = {k: self._gain(k) for k in (self._first, self._last)}
        difference = self._found.bootstrap.difference(gains[self._last], gains[self._first])
        base, ssd = (self._scores(model, self._found.best(model), self._last) for model in ("base", "ssd"))
        return Claim(
            text=f"SSD gains more in pass@{self._last} than in pass@{self._first}: diversity is preserved.",
            status=status_of(difference, self._found.bootstrap.mean(gains[self._last])),
            evidence=f"over the default decode of the base: {_signed(gains[self._last])} against "
            f"{_signed(gains[self._first])}; difference {_points(difference)}. With each at its best, "
            f"pass@{self._last} is {_percent(ssd)} (SSD) against {_percent(base)} (base)",
        )

    def _more_on_hard(self) -> list[Claim]:
        """Empty if the reporting half has too few easy or hard problems for an interval."""
        gain, report = self._gain(self._first), self._found.halves.report
        by_name = {name: gain[mask[report]] for name, mask in self._found.difficulties.items()}
        if any(np.count_nonzero(~np.isnan(by_name.get(name, _NO_SCORES))) < _MIN_PROBLEMS for name in ("easy", "hard")):
            return []
        difference = self._found.bootstrap.contrast(by_name["hard"], by_name["easy"])
        listed = ", ".join(f"{name} {_signed(values)}" for name, values in by_name.items() if len(values))
        claim = Claim(
            text="SSD gains more on hard problems than on easy ones.",
            status=status_of(difference, self._found.bootstrap.mean(by_name["hard"])),
            evidence=f"pass@{self._first} over the default decode of the base: {listed}; hard minus easy "
            f"{_points(difference)} (unpaired)",
        )
        return [claim]

    def _degrades_less(self) -> Claim:
        hot = hottest(self._found.cells)
        losses = {
            model: self._scores(model, self._found.best(model), self._first) - self._scores(model, hot, self._first)
            for model in ("base", "ssd")
        }
        difference = self._found.bootstrap.difference(losses["base"], losses["ssd"])
        return Claim(
            text="SSD degrades less at high temperature than its base.",
            status=status_of(difference),
            evidence=f"pass@{self._first} lost between the best setting of each and {hot.label}: base "
            f"{_signed(-losses['base'])}, SSD {_signed(-losses['ssd'])}; difference {_points(difference)}",
        )

    def _gain(self, k: int) -> Scores:
        return self._scores("ssd", self._ssd, k) - self._scores("base", self._sampling.default, k)


def _mean(scores: Scores) -> float:
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if len(known) else float("nan")


def _percent(scores: Scores) -> str:
    mean = _mean(scores)
    return NOT_MEASURED if math.isnan(mean) else f"{100 * mean:.1f} %"


def _signed(scores: Scores) -> str:
    mean = _mean(scores)
    return NOT_MEASURED if math.isnan(mean) else signed(mean)


def _points(difference: Estimate) -> str:
    if math.isnan(difference.value):
        return f"{NOT_MEASURED}, the checker failed"
    return f"{signed(difference.value)} points ({signed(difference.low)} to {signed(difference.high)})"
