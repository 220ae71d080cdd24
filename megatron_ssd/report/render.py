"""Writes the report of a run to ``run_dir/report``.

``summary.json`` has the results for other programs. Scores are shares in [0, 1], and null if they were not measured.
``benchmarks`` has a section for each benchmark: ``base`` and ``ssd`` are each model at its best setting, and
``headline`` has all four scores of the table. A score has ``pass@K`` with ``value``, ``low`` and ``high``, the same on
the base tests of HumanEval+ and MBPP+, the same by difficulty, and n. ``ssd_ahead_by`` has the differences with their
sign tests, and ``diversity`` the distinct programs per problem. Then come ``decoding`` (the grid, the effect of
choosing from it, scores over T_eff), ``claims`` and ``checkpoints`` (scores over training, null if only the last
checkpoint was measured). The rest is about the run: ``deviations``, ``problems`` (reasons
for dropping, and evaluation problems among them), ``sampling``, ``stages``, ``lineage`` and ``general_benchmarks``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.config.run import RunConfig
from megatron_ssd.evaluation.results import EvaluationResults, Score, write_json
from megatron_ssd.grading.metrics import Estimate
from megatron_ssd.report.content import measure_sentence, notice, result_sentence
from megatron_ssd.report.data import ReportData, gather
from megatron_ssd.report.page import problems_page, render
from megatron_ssd.report.paper import deviations
from megatron_ssd.report.problems_page import render_problems
from megatron_ssd.report.stage import print_report, report_stage

# What summary.json has of each manifest.
_STAGE_FACTS = ("engine", "packages", "seconds", "created", "counts", "dropped", "host", "code_version")


def run_report(config: RunConfig) -> None:
    """Publish the report unless it is up to date, and print its headline tables.

    Raises:
        UserError: a stage before it was not published, or one of its files cannot be read.
        ConfigError: the list of problems alone takes more than ``report.page_mib``.
    """
    stage = report_stage(config)
    if not stage.is_current():
        data = gather(config)
        work = stage.begin()
        write_json(work / "summary.json", _summary(data))
        write_atomically(work / "report.html", render(data))
        for one in data.benchmarks:
            page = render_problems(
                one.pages,
                benchmark=one.scores.benchmark,
                run_name=data.run_name,
                code_version=data.manifests["eval"].code_version,
                page_mib=config.report.page_mib,
            )
            write_atomically(work / problems_page(one.scores.benchmark), page)
        stage.publish(
            counts={
                "examples": sum(len(one.pages.examples) for one in data.benchmarks),
                "claims": sum(len(one.scores.claims) for one in data.benchmarks),
            }
        )
    print_report(Path(config.run_dir))


def _summary(data: ReportData) -> dict[str, Any]:
    """The content of ``summary.json``."""
    return {
        "run": data.run_name,
        "notice": notice(data.settings, [one.scores for one in data.benchmarks]),
        "benchmarks": {
            one.scores.benchmark: {**_benchmark(one.scores), "checkpoints": one.checkpoints} for one in data.benchmarks
        },
        "deviations": deviations(data.settings),
        "problems": data.problems,
        "sampling": _sampling(data),
        "stages": {
            stage: {name: getattr(manifest, name) for name in _STAGE_FACTS}
            for stage, manifest in data.manifests.items()
        },
        "settings": data.settings,
        "lineage": {"complete": data.lineage.is_complete, **dataclasses.asdict(data.lineage)},
        "general_benchmarks": data.general_benchmarks.results if data.general_benchmarks else (),
    }


def _benchmark(scores: EvaluationResults) -> dict[str, Any]:
    return {
        "format": scores.format,
        "result": result_sentence(scores),
        "measured": measure_sentence(scores),
        "confidence": scores.confidence,
        "base": _headline_json(scores, scores.score("base_best")),
        "ssd": _headline_json(scores, scores.score("ssd_best")),
        "headline": [_headline_json(scores, score) for score in scores.headline],
        "decoding": {
            name: getattr(scores, name) for name in ("grid", "beside_grid", "best_of_grid", "effective_temperature")
        },
        "errata": {"line": scores.errata.line, **dataclasses.asdict(scores.errata)},
        "flawed": scores.flawed,
        "claim_rule": scores.claim_rule,
        "claims": scores.claims,
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
        "base_tests": None if score.base_tests is None else _by_k(score.base_tests),
        "by_difficulty": {
            name: {"problems": score.problems_by_difficulty.get(name), **_by_k(values)}
            for name, values in score.by_difficulty.items()
        },
        "diversity": {**dataclasses.asdict(setting.diversity), "no_code": setting.no_code},
        "ssd_ahead_by": None if score.ssd_gain is None else _by_k(score.ssd_gain),
    }


def _by_k(values: Mapping[int, Estimate]) -> dict[str, Any]:
    return {f"pass@{k}": estimate for k, estimate in values.items()}


def _sampling(data: ReportData) -> dict[str, Any]:
    lengths = sorted(data.sampling.lengths)
    names = ("num_samples", "num_kept", "finish_reasons", "skip_reasons", "dropped")
    return {
        **{name: getattr(data.sampling, name) for name in names},
        "median_response_tokens": lengths[len(lengths) // 2] if lengths else None,
    }
