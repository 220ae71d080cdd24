"""``report/summary.json``: the run's result for machines. Scores are shares in [0, 1], null where not measured.

Layout: ``base`` and ``ssd`` hold each model at its best setting; ``headline`` all four rows of the table; each row has
``pass@K`` with ``value``, ``low`` and ``high``, the same by difficulty, and n; ``ssd_ahead_by`` has the differences and
their sign tests, ``diversity`` distinct programs a problem. ``decoding`` (the grid, what choosing from it adds, and
scores over T_eff), ``claims``, ``deviations``, ``problems`` (what was dropped, and evaluation problems found among
them), ``sampling``, ``stages`` and ``lineage`` follow.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from megatron_ssd.report.content import measure_sentence, notice, result_sentence
from megatron_ssd.report.lineage import Lineage
from megatron_ssd.report.paper import deviations
from megatron_ssd.report.records import Estimate, ReportData, Score, Sweep


def summarise(data: ReportData, lineage: Lineage) -> dict[str, Any]:
    """The whole summary as JSON values."""
    scores = data.scores
    return {
        "run": data.run_name,
        "result": result_sentence(scores),
        "measured": measure_sentence(scores, data.settings),
        "notice": notice(data.settings),
        "confidence": scores.confidence,
        "base": _row(scores.row("base_best")),
        "ssd": _row(scores.row("ssd_best")),
        "headline": [_row(score) for score in scores.headline],
        "decoding": _decoding(scores.sweep),
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
        "lineage": {"whole": lineage.is_whole, **dataclasses.asdict(lineage)},
    }


def _row(score: Score) -> dict[str, Any]:
    return {
        "key": score.key,
        "title": score.title,
        "model": score.model,
        "decoding": score.decoding,
        "n": {"problems": score.num_problems, "samples_per_problem": score.num_samples},
        **_estimates(score.overall),
        "by_difficulty": {
            name: {"problems": score.problems_by_difficulty.get(name), **_estimates(values)}
            for name, values in score.by_difficulty.items()
        },
        "diversity": {**dataclasses.asdict(score.diversity), "no_code": score.no_code},
        "ssd_ahead_by": None if score.ssd_gain is None else _gains(score, score.ssd_gain),
    }


def _gains(score: Score, gains: dict[int, Estimate]) -> dict[str, Any]:
    tests = score.sign_tests or {}
    return {name: {**values, "sign_test": dataclasses.asdict(tests[k])}
            for k, (name, values) in zip(gains, _estimates(gains).items(), strict=True)}  # fmt: skip


def _decoding(sweep: Sweep) -> dict[str, Any]:
    """The sweep as its records say it, with null for what was not measured."""
    values = dataclasses.asdict(sweep)
    for best, record in zip(values["best_cells"], sweep.best_cells, strict=True):
        best.update({name: getattr(record, name).to_json() for name in ("selection", "report", "on_all_problems")})
    for point, measured in zip(values["effective"], sweep.effective, strict=True):
        point["estimate"] = measured.estimate.to_json()
    return values


def _estimates(values: dict[int, Estimate]) -> dict[str, Any]:
    return {f"pass@{k}": estimate.to_json() for k, estimate in values.items()}


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
