"""Computes ``report/summary.json``, the results of a run for other programs.

Scores are shares in [0, 1], and null if they were not measured. ``base`` and ``ssd`` have each model at its best
setting, and ``headline`` has all four scores of the table. A score has ``pass@K`` with ``value``, ``low`` and
``high``, the same by difficulty, and n. ``ssd_ahead_by`` has the differences with their sign tests, and ``diversity``
the distinct programs per problem. Then come ``decoding`` (the grid, the effect of choosing from it, scores over T_eff),
``claims``, ``deviations``, ``problems`` (reasons for dropping, and evaluation problems among them), ``sampling``,
``stages``, ``lineage`` and ``benchmarks`` (as in the page's table).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from megatron_ssd.evaluation.results import EvaluationResults, Score, to_json
from megatron_ssd.grading.metrics import Estimate
from megatron_ssd.report.content import benchmark_rows, measure_sentence, notice, result_sentence
from megatron_ssd.report.data import ReportData
from megatron_ssd.report.paper import deviations


def summarise(data: ReportData) -> dict[str, Any]:
    """The content of ``summary.json``."""
    scores = data.scores
    return {
        "run": data.run_name,
        "result": result_sentence(scores),
        "measured": measure_sentence(scores, data.settings),
        "notice": notice(data.settings),
        "confidence": scores.confidence,
        "base": _headline_json(scores, scores.score("base_best")),
        "ssd": _headline_json(scores, scores.score("ssd_best")),
        "headline": [_headline_json(scores, score) for score in scores.headline],
        "decoding": to_json(
            {name: getattr(scores, name) for name in ("grid", "beside_grid", "best_of_grid", "effective_temperature")}
        ),
        "errata": {"line": scores.errata.line, **dataclasses.asdict(scores.errata)},
        "claim_rule": scores.claim_rule,
        "claims": [dataclasses.asdict(claim) for claim in scores.claims],
        "deviations": [dataclasses.asdict(deviation) for deviation in deviations(data.settings)],
        "problems": dataclasses.asdict(data.problems),
        "sampling": _sampling(data),
        "stages": {
            stage: {
                "engine": manifest.engine,
                "packages": manifest.packages,
                "seconds": manifest.seconds,
                "created": manifest.created,
                "counts": manifest.counts,
                "dropped": manifest.dropped,
                "host": manifest.host,
                "code_version": manifest.code_version,
            }
            for stage, manifest in data.manifests.items()
        },
        "settings": data.settings,
        "lineage": {"complete": data.lineage.is_complete, **dataclasses.asdict(data.lineage)},
        "benchmarks": [dataclasses.asdict(row) for row in benchmark_rows(data.benchmarks)],
    }


def _headline_json(results: EvaluationResults, score: Score) -> dict[str, Any]:
    setting = results.setting(score)
    return {
        "key": score.key,
        "title": score.title,
        "model": score.model,
        "decoding": score.decoding,
        "n": {"problems": score.num_problems, "samples_per_problem": score.num_samples},
        **_by_k(score.overall),
        "by_difficulty": {
            name: {"problems": score.problems_by_difficulty.get(name), **_by_k(values)}
            for name, values in score.by_difficulty.items()
        },
        "diversity": {**dataclasses.asdict(setting.diversity), "no_code": setting.no_code},
        "ssd_ahead_by": None if score.ssd_gain is None else _by_k(score.ssd_gain),
    }


def _by_k(values: Mapping[int, Estimate]) -> dict[str, Any]:
    return {f"pass@{k}": to_json(estimate) for k, estimate in values.items()}


def _sampling(data: ReportData) -> dict[str, Any]:
    lengths = sorted(data.sampling.lengths)
    return {
        "num_samples": data.sampling.num_samples,
        "num_kept": data.sampling.num_kept,
        "finish_reasons": data.sampling.finish_reasons,
        "skip_reasons": data.sampling.skip_reasons,
        "dropped": data.sampling.dropped,
        "median_response_tokens": lengths[len(lengths) // 2] if lengths else None,
    }
