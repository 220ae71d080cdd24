"""Formats the results of an evaluation as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_ssd.evaluation.results import EvaluationResults, Score, SsdGain
from megatron_ssd.formatting import DASH, NOT_MEASURED, aligned, counted, signed
from megatron_ssd.grading.metrics import Estimate, SignTest


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A value and its interval as text; a dash and words if it is not ``known``."""

    value: str
    interval: str
    known: bool = True


UNKNOWN = Measured(value=DASH, interval=NOT_MEASURED, known=False)


def ends(ks: Sequence[int]) -> tuple[int, ...]:
    """The first and the last k, or the only one: what is shown if there is no room for all."""
    return tuple(dict.fromkeys([*ks[:1], *ks[-1:]]))


def percent(estimate: Estimate) -> Measured:
    """A share in percent with one decimal."""
    return _measured(estimate, lambda share: f"{share * 100:.1f}")


def points(estimate: Estimate | None) -> Measured:
    """A difference of shares as signed percentage points; None for one that was not measured."""
    return UNKNOWN if estimate is None else _measured(estimate, signed)


def _measured(estimate: Estimate, show: Callable[[float], str]) -> Measured:
    if not estimate.is_known:
        return UNKNOWN
    return Measured(value=show(estimate.value), interval=f"{show(estimate.low)} to {show(estimate.high)}")


def confidence_text(confidence: float) -> str:
    """``95 %`` for 0.95."""
    return f"{confidence * 100:g} %"


def p_text(p_value: float) -> str:
    """A p value as ``0.041``, or ``< 0.001``."""
    return f"{p_value:.3f}" if p_value >= 0.001 else "< 0.001"


def split_cells(test: SignTest) -> list[str]:
    """Problems ahead, behind and tied, and the p value; dashes if no problem was measured."""
    numbers = [test.ahead, test.behind, test.tied]
    return [*map(str, numbers), p_text(test.p_value)] if any(numbers) else [DASH] * 4


def score_tables(results: EvaluationResults) -> str:
    """The scores of the headline and the lead of SSD over each setting of the base, in per cent and points.

    The last column has the base tests of HumanEval+ and MBPP+. With more than two k, only the first and the last have
    their interval, so that a line fits a terminal.
    """
    ks, last = results.ks, results.headline[-1]
    shown = ends(ks)
    columns = [text for k in ks for text in ([f"pass@{k}", "interval"] if k in shown else [f"pass@{k}"])]
    if last.base_tests:
        columns.append(f"pass@{ks[0]}, base tests")
    tables = [aligned([["setting", "decoding", *columns], *(_scores(score, shown) for score in results.headline)])]
    gains = [(score.title, score.ssd_gain) for score in results.headline if score.ssd_gain]
    if gains:
        header = [f"{last.title} is ahead of", *(text for k in shown for text in (f"pass@{k}", "interval")),
                  "ahead", "behind", "tied", "sign test p"]  # fmt: skip
        tables.append(aligned([header, *(_gains(title, gain, shown) for title, gain in gains)]))
    rule = "-" * max(len(line) for table in tables for line in table)
    lines = [line for header, *rows in tables for line in (header, rule, *rows, "")]
    basis = (
        f"{results.benchmark}: per cent of {counted(last.num_problems, 'problem')} x {last.num_samples} programs, the "
        f"half on which nothing was chosen; {confidence_text(results.confidence)} intervals"
    )
    if gains:
        basis += (
            f",\ndifferences in points, paired by problem; problems ahead, behind and tied in pass@{ks[0]}, and the p "
            "value of that split"
        )
    return "\n".join([*lines, basis])


def claim_lines(results: EvaluationResults) -> str:
    """Each claim with its status, and its evidence below."""
    lines = [f"{claim.status:9}  {claim.text}\n           {claim.evidence}" for claim in results.claims]
    return "\n".join([f"claims, on {results.benchmark}:", *lines] if lines else [])


def _scores(score: Score, shown: tuple[int, ...]) -> list[str]:
    cells = [score.title, score.decoding]
    for k, estimate in score.overall.items():
        measured = percent(estimate)
        cells += [measured.value, measured.interval] if k in shown else [measured.value]
    if score.base_tests:
        cells.append(percent(next(iter(score.base_tests.values()))).value)
    return cells


def _gains(title: str, gains: dict[int, SsdGain], shown: tuple[int, ...]) -> list[str]:
    measured = [points(gains[k]) for k in shown]
    cells = [text for one in measured for text in (one.value, one.interval)]
    return [title, *cells, *split_cells(gains[shown[0]].sign_test)]
