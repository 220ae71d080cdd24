"""The sentences of the report that depend on what was measured. They state it and no more than it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_ssd.report.formatting import confidence_text, percent, points
from megatron_ssd.report.records import Estimate, Score, Scores
from megatron_ssd.text_table import counted

# Below this a model has seen far too little to write a competitive-programming solution.
_USEFUL_PARAMETERS = 100_000_000

SURE = {
    "authors": "from the authors",
    "several readings": "from readings of the paper that agree",
    "one report": "from one report",
    "sources conflict": "sources conflict",
}
FINISH_REASONS = {
    "stop": "stopped by itself",
    "length": "cut at the length limit",
    "skipped": "not run",
}


def result_sentence(scores: Scores) -> str:
    """What the run found, in one or two sentences."""
    base, ssd = scores.row("base_best"), scores.row("ssd_best")
    k = scores.ks[0]
    if not (base.overall[k].is_known and ssd.overall[k].is_known):
        failed = [row.title for row in (base, ssd) if not row.overall[k].is_known]
        return f"Not measured: the judge itself failed on every problem of the reporting half ({' and '.join(failed)})."
    if base.overall[k].value == ssd.overall[k].value == 0:
        return (
            "Neither the base nor the self-distilled model solves a problem of the reporting half, decoded at its best."
        )
    first = (
        f"Decoded at its best, the self-distilled model reaches {percent(ssd.overall[k]).value} % pass@{k} and its "
        f"base {percent(base.overall[k]).value} %."
    )
    return f"{first} {_difference_sentence(base, scores)}"


def measure_sentence(scores: Scores, settings: Mapping[str, Any]) -> str:
    """What was measured, on which half, and how the settings were chosen."""
    ssd = scores.row("ssd_best")
    cells = sum(cell.model == "ssd" for cell in scores.sweep.grid)
    problems, others = (counted(number, "problem") for number in (ssd.num_problems, scores.selection_problems))
    return (
        f"Measured on {problems} of {settings.get('benchmark.name')}, {ssd.num_samples} programs a "
        f"problem, each run against hidden tests. For each model \u201cat its best\u201d is the best of the same "
        f"{cells} decoding settings by pass@{scores.ks[0]} on the other {others}; scores "
        f"are reported on the half on which nothing was chosen. Intervals are at "
        f"{confidence_text(scores.confidence)} over problems."
    )


def notice(settings: Mapping[str, Any]) -> str:
    """A warning that the numbers measure the path and not the method; empty where they can measure it."""
    real = [key for key in ("problems.name", "benchmark.name") if settings.get(key) != "minicode"]
    num_parameters = settings.get("model.num_parameters")
    if not real or num_parameters is None or num_parameters >= _USEFUL_PARAMETERS:
        return ""
    what = " and ".join(f"{settings.get(key)} ({key.split('.')[0]})" for key in real)
    return (
        f"This run used real competitive-programming problems, {what}, with a model of "
        f"{num_parameters / 1e6:.1f} million parameters. A model of that size writes nothing useful there. The scores "
        f"below say nothing about self-distillation; the page shows that the whole path runs, from problems to graded "
        f"programs."
    )


def separated(gain: Estimate) -> bool:
    """Whether an interval of a difference leaves zero out."""
    return gain.low > 0 or gain.high < 0


def _unbroken(text: str) -> str:
    """``text`` that no line break may cut."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _difference_sentence(base: Score, scores: Scores) -> str:
    assert base.ssd_gain is not None, "base rows carry the paired difference to SSD"
    gain = base.ssd_gain[scores.ks[0]]
    if not gain.is_known:
        return "The paired difference is not measured: the judge itself failed on every problem for one of the two."
    written = points(gain)
    if base.num_problems == 1:
        return f"The difference is {written.value} points on one problem, from which nothing follows."
    interval = _unbroken(written.interval)
    where = f"{written.value} points, with a {confidence_text(scores.confidence)} interval from {interval}"
    if not separated(gain):
        return f"The paired difference is {where}: this run does not tell the two apart."
    return f"The paired difference is {where}: {'SSD' if gain.value > 0 else 'the base'} is ahead."
