"""Scores of rows to the numbers of a task: value and standard error as lm-eval gives them, and the paired difference.

A task's value is the mean over its rows, and its standard error that of a mean. A group's value weighs its tasks by
their size, which is again the mean over all rows; its standard error pools the tasks' own variances, and is unknown
where a task has one row, as in lm-eval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_ssd.config.evaluation import GeneralBenchmarksConfig
from megatron_ssd.evaluation.results import ModelName
from megatron_ssd.general_benchmarks.local_data import rows_on_hub
from megatron_ssd.general_benchmarks.parts import NO_FILTER, ItemRow
from megatron_ssd.grading.metrics import Bootstrap
from megatron_ssd.text_table import MINUS

ItemKey = tuple[str, int]  # leaf task, row


@dataclass(frozen=True, kw_only=True)
class MetricScores:
    """One metric of one task: score of each row, by model."""

    task: str
    metric: str
    filter: str
    by_model: Mapping[ModelName, Mapping[ItemKey, float]]


def metrics_of(task: str, rows: Mapping[ModelName, Sequence[ItemRow]]) -> list[MetricScores]:
    """Every metric that lm-eval judged, by filter."""
    found: dict[tuple[str, str], dict[ModelName, dict[ItemKey, float]]] = {}
    for model, of_model in rows.items():
        for row in of_model:
            for metric, score in row.scores.items():
                found.setdefault((metric, row.filter), {}).setdefault(model, {})[row.key] = score
    return [
        MetricScores(task=task, metric=metric, filter=name, by_model=by_model)
        for (metric, name), by_model in found.items()
    ]


def summarise(
    scores: Sequence[MetricScores], fewshot: Mapping[str, int], config: GeneralBenchmarksConfig, bootstrap: Bootstrap
) -> dict[str, Any]:
    """``summary.json``: a row for each metric; shares or whatever the metric is in, null where unknown."""
    return {
        "confidence": bootstrap.confidence,
        "chat_template": config.chat_template,
        "results": [
            {
                "task": one.task,
                "metric": one.metric,
                "filter": one.filter,
                "num_fewshot": fewshot[one.task],
                "rows_on_hub": rows_on_hub(one.task),
                **{model: _value(of_rows) for model, of_rows in one.by_model.items()},
                "difference": _difference(one, bootstrap),
            }
            for one in scores
        ],
    }


def _value(scores: Mapping[ItemKey, float]) -> dict[str, float | int | None]:
    return {"value": float(np.mean(list(scores.values()))), "stderr": _stderr(scores), "rows": len(scores)}


def _stderr(scores: Mapping[ItemKey, float]) -> float | None:
    by_task: dict[str, list[float]] = {}
    for (leaf, _), score in scores.items():
        by_task.setdefault(leaf, []).append(score)
    sizes = np.array([len(of_task) for of_task in by_task.values()])
    if sizes.min() < 2:
        return None
    variances = np.array([np.var(of_task, ddof=1) for of_task in by_task.values()])
    pooled = ((sizes - 1) * variances).sum() / (sizes.sum() - len(sizes))
    return float(np.sqrt(pooled / sizes.sum()))


def _difference(one: MetricScores, bootstrap: Bootstrap) -> dict[str, float | None] | None:
    """SSD less base, paired by row; None where one of them was not measured."""
    if len(one.by_model) < 2:
        return None
    base, ssd = (one.by_model[model] for model in ("base", "ssd"))
    shared = sorted(base.keys() & ssd.keys())  # all, but where the judge of programs failed
    estimate = bootstrap.difference(np.array([ssd[key] for key in shared]), np.array([base[key] for key in shared]))
    return estimate.interval_json()


def table(summary: Mapping[str, Any]) -> str:
    """The summary for a terminal."""
    lines = [["task", "metric", "rows", "base", "stderr", "SSD", "stderr", "SSD less base", "interval"]]
    for row in summary["results"]:
        metric = row["metric"] if row["filter"] == NO_FILTER else f"{row['metric']} ({row['filter']})"
        models = [row.get(model) or {} for model in ("base", "ssd")]
        values = [cell for model in models for cell in (_shown(model.get("value")), _shown(model.get("stderr")))]
        difference = row["difference"] or {}
        low, high = (_shown(difference.get(end), sign=True) for end in ("low", "high"))
        interval = f"{low} to {high}" if difference else ""
        count = str(next(model["rows"] for model in models if model))
        lines.append([row["task"], metric, count, *values, _shown(difference.get("value"), sign=True), interval])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    share = f"{100 * summary['confidence']:g} %"
    return "\n".join([*text, "", f"scores as lm-eval gives them; {share} intervals of the difference, paired by row"])


def _shown(value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:+.4f}".replace("-", MINUS) if sign and round(value, 4) else f"{value:.4f}"
