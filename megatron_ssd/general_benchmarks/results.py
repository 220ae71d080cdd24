"""Computes the results of general benchmarks from the scores of documents.

The value of a task is the mean over its documents, and its standard error is that of a mean. A group weights its tasks
by their size, which is again the mean over all documents; its standard error pools the variances of its tasks, and is
unknown if a task has only one document. Both are as in lm-eval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_ssd.evaluation.results import ModelName
from megatron_ssd.formatting import MINUS, aligned
from megatron_ssd.general_benchmarks.local_data import rows_on_hub
from megatron_ssd.grading.metrics import Bootstrap, Estimate

NAME, SUMMARY = "general_benchmarks", "summary.json"  # the folder of the stage, and the file in it
NO_FILTER = "none"  # lm-eval's name for an answer that was not filtered
DocumentKey = tuple[str, int]  # leaf task, document


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentResult:
    """One document of a task, with the answers and scores that lm-eval gives it.

    ``task`` is the leaf if a group was asked for. ``scores`` has each metric that is a mean over documents. A code task
    has no scores, but ``programs`` to run and ``ks`` of pass@k. ``answers`` are the unfiltered answers of the model.
    """

    task: str
    doc_id: int
    filter: str
    doc: dict[str, Any]
    prompt: str
    answers: list[Any]
    scores: dict[str, float]
    programs: list[str]
    ks: list[int]
    num_fewshot: int

    @property
    def key(self) -> DocumentKey:
        """Identifies the document in a task."""
        return self.task, self.doc_id


@dataclass(frozen=True, kw_only=True)
class ModelValue:
    """The value of one metric for one model over ``rows`` documents; ``stderr`` is None if it is unknown."""

    value: float
    stderr: float | None
    rows: int


@dataclass(frozen=True, kw_only=True)
class MetricResult:
    """One metric of one task; None for a model that was not measured.

    ``rows_on_hub`` is the size of the published benchmark, if known. ``difference`` is SSD minus base, paired by
    document.
    """

    task: str
    metric: str
    filter: str
    num_fewshot: int
    rows_on_hub: int | None
    base: ModelValue | None = None
    ssd: ModelValue | None = None
    difference: Estimate | None = None

    @property
    def title(self) -> str:
        """The metric, with its filter if there is one."""
        return self.metric if self.filter == NO_FILTER else f"{self.metric} ({self.filter})"

    @property
    def rows(self) -> int:
        """How many documents were measured."""
        return next(value.rows for value in (self.base, self.ssd) if value is not None)


@dataclass(frozen=True, kw_only=True)
class BenchmarkResults:
    """The results of all metrics: ``summary.json``."""

    confidence: float
    chat_template: bool
    results: tuple[MetricResult, ...]


def results_of(
    task: str, documents: Mapping[ModelName, Sequence[DocumentResult]], bootstrap: Bootstrap
) -> list[MetricResult]:
    """The result of every metric that lm-eval scored, by filter."""
    found: dict[tuple[str, str], dict[ModelName, dict[DocumentKey, float]]] = {}
    for model, of_model in documents.items():
        for document in of_model:
            for metric, score in document.scores.items():
                found.setdefault((metric, document.filter), {}).setdefault(model, {})[document.key] = score
    return [
        MetricResult(
            task=task,
            metric=metric,
            filter=name,
            num_fewshot=next(iter(documents.values()))[0].num_fewshot,
            rows_on_hub=rows_on_hub(task),
            **{model: _value(scores) for model, scores in by_model.items()},
            difference=_difference(by_model, bootstrap),
        )
        for (metric, name), by_model in found.items()
    ]


def _value(scores: Mapping[DocumentKey, float]) -> ModelValue:
    return ModelValue(value=float(np.mean(list(scores.values()))), stderr=_stderr(scores), rows=len(scores))


def _stderr(scores: Mapping[DocumentKey, float]) -> float | None:
    by_task: dict[str, list[float]] = {}
    for (leaf, _), score in scores.items():
        by_task.setdefault(leaf, []).append(score)
    sizes = np.array([len(of_task) for of_task in by_task.values()])
    if sizes.min() < 2:
        return None
    variances = np.array([np.var(of_task, ddof=1) for of_task in by_task.values()])
    pooled = ((sizes - 1) * variances).sum() / (sizes.sum() - len(sizes))
    return float(np.sqrt(pooled / sizes.sum()))


def _difference(by_model: Mapping[ModelName, Mapping[DocumentKey, float]], bootstrap: Bootstrap) -> Estimate | None:
    """SSD minus base, paired by document; None if one model was not measured."""
    if len(by_model) < 2:
        return None
    base, ssd = by_model["base"], by_model["ssd"]
    shared = sorted(base.keys() & ssd.keys())  # all documents, except those on which the checker failed
    return bootstrap.difference(np.array([ssd[key] for key in shared]), np.array([base[key] for key in shared]))


def table(summary: BenchmarkResults) -> str:
    """The results as a table for a terminal."""
    lines = [["task", "metric", "rows", "base", "stderr", "SSD", "stderr", "SSD minus base", "interval"]]
    for one in summary.results:
        values = [
            cell
            for model in (one.base, one.ssd)
            for cell in (("-", "-") if model is None else (_shown(model.value), _shown(model.stderr)))
        ]
        gain, interval = "-", ""
        if one.difference is not None:
            gain, low, high = (_signed(x) for x in (one.difference.value, one.difference.low, one.difference.high))
            interval = f"{low} to {high}"
        lines.append([one.task, one.title, str(one.rows), *values, gain, interval])
    share = f"{100 * summary.confidence:g} %"
    note = f"scores as lm-eval defines them; {share} intervals of the difference, paired by document"
    return "\n".join([*aligned(lines), "", note])


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _signed(value: float) -> str:
    if np.isnan(value):
        return "-"
    return f"{value:+.4f}".replace("-", MINUS) if round(value, 4) else f"{value:.4f}"
