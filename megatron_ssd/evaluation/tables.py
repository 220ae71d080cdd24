"""The results of an evaluation as tables for a terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from megatron_ssd.evaluation.results import EvaluationResults, Score, SsdGain
from megatron_ssd.grading.metrics import Estimate
from megatron_ssd.text_table import DASH, NOT_MEASURED, aligned, counted, signed, split_cells


def score_tables(results: EvaluationResults) -> str:
    """The scores of the headline and the lead of SSD over each setting of the base, in per cent and points.

    With more than two k, only the first and the last have their interval, so that a line fits a terminal.
    """
    ks, last = results.ks, results.headline[-1]
    shown = tuple(dict.fromkeys([*ks[:1], *ks[-1:]]))
    columns = [text for k in ks for text in ([f"pass@{k}", "interval"] if k in shown else [f"pass@{k}"])]
    tables = [aligned([["setting", "decoding", *columns], *(_scores(score, shown) for score in results.headline)])]
    gains = [(score.title, score.ssd_gain) for score in results.headline if score.ssd_gain]
    if gains:
        header = [f"{last.title} is ahead of", *(text for k in shown for text in (f"pass@{k}", "interval")),
                  "ahead", "behind", "tied", "sign test p"]  # fmt: skip
        tables.append(aligned([header, *(_gains(title, gain, shown) for title, gain in gains)]))
    rule = "-" * max(len(line) for table in tables for line in table)
    lines = [line for header, *rows in tables for line in (header, rule, *rows, "")]
    basis = (
        f"per cent of {counted(last.num_problems, 'problem')} x {last.num_samples} programs, the half on which nothing "
        f"was chosen; {100 * results.confidence:g} % intervals"
    )
    if gains:
        basis += (
            f",\ndifferences in points, paired by problem; problems ahead, behind and tied in pass@{ks[0]}, and the p "
            "value of that split"
        )
    return "\n".join([*lines, basis])


def claim_lines(results: EvaluationResults) -> str:
    """Each claim with its status, and its evidence below."""
    return "\n".join(f"{claim.status:9}  {claim.text}\n           {claim.evidence}" for claim in results.claims)


def _scores(score: Score, shown: tuple[int, ...]) -> list[str]:
    cells = {k: _cells(estimate, lambda share: f"{100 * share:.1f}") for k, estimate in score.overall.items()}
    return [score.title, score.decoding, *(text for k in cells for text in cells[k][: 2 if k in shown else 1])]


def _gains(title: str, gains: dict[int, SsdGain], shown: tuple[int, ...]) -> list[str]:
    split = split_cells(dataclasses.asdict(gains[shown[0]].sign_test))
    return [title, *(text for k in shown for text in _cells(gains[k], signed)), *split]


def _cells(estimate: Estimate, form: Callable[[float], str]) -> tuple[str, str]:
    """Value and interval."""
    if not estimate.is_known:
        return DASH, NOT_MEASURED
    return form(estimate.value), f"{form(estimate.low)} to {form(estimate.high)}"
