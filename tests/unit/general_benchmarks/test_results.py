"""Tests for the results of general benchmarks."""

from __future__ import annotations

import random

import pytest

from megatron_ssd.general_benchmarks.results import (
    BenchmarkResults,
    DocumentResult,
    MetricResult,
    ModelValue,
    results_of,
    table,
)
from megatron_ssd.grading.metrics import Bootstrap


def item(leaf: str, number: int, *, filter_name: str = "none", **scores: float) -> DocumentResult:
    return DocumentResult(task=leaf, doc_id=number, filter=filter_name, doc={}, prompt="", answers=[], scores=scores,
                   programs=[], ks=[], num_fewshot=0)  # fmt: skip


def summary_of(base: list[DocumentResult], ssd: list[DocumentResult] | None = None) -> list[MetricResult]:
    return results_of("t", {"base": base} if ssd is None else {"base": base, "ssd": ssd},
                      Bootstrap(num_resamples=500))  # fmt: skip


def test_values_and_standard_errors_equal_lm_evals() -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics", reason="needs lm-eval (make venv)")
    rng = random.Random(0)
    leaves = {f"leaf{n}": [float(rng.random() < 0.3 + 0.1 * n) for _ in range(5 + 7 * n)] for n in range(4)}
    (group,) = summary_of([item(leaf, n, acc=s) for leaf, scores in leaves.items() for n, s in enumerate(scores)])
    sizes = [len(scores) for scores in leaves.values()]
    errors = [metrics.mean_stderr(scores) for scores in leaves.values()]
    means = [metrics.mean(scores) for scores in leaves.values()]
    assert group.base.value == pytest.approx(metrics.aggregate_subtask_metrics(means, sizes, weight_by_size=True))
    assert group.base.stderr == pytest.approx(metrics.pooled_sample_stderr(errors, sizes))
    (one,) = summary_of([item("leaf3", n, acc=s) for n, s in enumerate(leaves["leaf3"])])
    assert one.base.stderr == pytest.approx(errors[3])


def test_the_standard_error_of_one_document_is_unknown() -> None:
    (result,) = summary_of([item("a", 0, acc=1.0), item("b", 0, acc=0.0), item("b", 1, acc=0.0)])
    assert result.base == ModelValue(value=pytest.approx(1 / 3), stderr=None, rows=3)


def test_differences_are_paired_by_document_in_any_order() -> None:
    base = [item("t", n, acc=float(n % 2)) for n in range(40)]
    (same,) = summary_of(base, list(reversed(base)))
    assert (same.difference.value, same.difference.low, same.difference.high) == (0.0, 0.0, 0.0)
    worse = [item("t", n, acc=float(n % 2 and n != 5)) for n in range(40)]
    (result,) = summary_of(base, worse)
    assert result.difference.value == pytest.approx(-1 / 40)
    assert result.difference.low < -1 / 40 < result.difference.high == 0.0


def test_a_document_without_a_score_is_left_out_of_differences() -> None:
    base = [item("t", 0, **{"pass@1": 1.0}), item("t", 1, **{"pass@1": 1.0})]
    (result,) = summary_of(base, [item("t", 0), item("t", 1, **{"pass@1": 0.0})])
    assert (result.base.rows, result.ssd.rows, result.difference.value) == (2, 1, -1.0)


def test_every_filter_and_metric_has_a_result() -> None:
    documents = [item("t", 0, filter_name=name, acc=1.0, acc_norm=0.0) for name in ("strict", "flexible")]
    found = [(result.metric, result.filter, result.base.value) for result in summary_of(documents)]
    assert found == [("acc", "strict", 1.0), ("acc_norm", "strict", 0.0), ("acc", "flexible", 1.0),
                     ("acc_norm", "flexible", 0.0)]  # fmt: skip


def test_the_table_of_a_base_without_a_tuned_model() -> None:
    results = summary_of([item("t", n, acc=float(n < 3)) for n in range(4)])
    text = table(BenchmarkResults(confidence=0.95, chat_template=False, results=tuple(results)))
    header, line, *_ = text.splitlines()
    assert header.split()[:4] == ["task", "metric", "rows", "base"]
    assert line.split() == ["t", "acc", "4", "0.7500", "0.2500", "-", "-", "-"]
