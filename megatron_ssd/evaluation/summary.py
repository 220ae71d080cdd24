"""``eval/summary.json``: everything that was counted.

Layout:
- ``headline``: the base at its default decode, at the training decode and at its best, and SSD at its best. All on the
  reporting half, the best ones chosen on the other; ``ssd_gain`` is SSD at its best minus the row, paired by problem,
  with ``sign_test``: problems on which SSD is ahead, behind or tied, and the p value.
- ``grid``, ``beside_grid``, ``best_of_grid`` and ``effective_temperature``: the decode settings, see ``sweep.py``.
- ``settings``: model -> label -> scores on all problems, finish reasons, outcomes, what share held no program
  (``no_code``), and ``diversity``: distinct programs a problem (see ``evaluation/diversity.py``).
- ``claims`` with ``claim_rule``; ``difficulties`` by problem id; sizes, and how intervals were made.
Scores are shares in [0, 1]. An estimate is ``value``, ``low``, ``high``.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from megatron_ssd.config.generation import SamplingConfig, SamplingParams
from megatron_ssd.evaluation import claims, sweep
from megatron_ssd.evaluation.diversity import Diversity
from megatron_ssd.evaluation.grid import ModelName, difficulty_of
from megatron_ssd.evaluation.measurements import Measurements
from megatron_ssd.grading.metrics import Bootstrap, Estimate, Scores, sign_test
from megatron_ssd.text_table import NOT_MEASURED, aligned, signed, split_cells

_TITLES = {
    "base_default": "base at its default decode",
    "base_train": "base at the training decode",
    "base_best": "base at its best",
    "ssd_best": "SSD at its best",
}


def summarise(
    found: Measurements,
    sampling: SamplingConfig,
    *,
    finish_reasons: Mapping[ModelName, Mapping[str, Mapping[str, int]]],
    diversity: Mapping[ModelName, Mapping[str, Diversity]],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The whole summary as JSON values.

    Args:
        found: all scores.
        sampling: names the settings beside the grid.
        finish_reasons: model -> label -> finish reason -> responses.
        diversity: model -> label -> distinct programs.
        facts: joined to the top level, for example the engine; ``errata`` as ``problems.errata.Errata`` has them.
    """
    rows = headline_settings(found, sampling)
    return {
        "headline": [
            _row(found, key, model, decoding, rows.get("ssd_best")) for key, (model, decoding) in rows.items()
        ],
        "grid": sweep.grid_rows(found, sampling),
        "beside_grid": sweep.beside_grid(found, sampling),
        "best_of_grid": sweep.best_of_grid(found),
        "effective_temperature": sweep.effective_temperatures(found, sampling),
        "claims": [dataclasses.asdict(claim) for claim in claims.judge_claims(found, sampling)]
        if "ssd" in found.verdicts
        else [],
        "claim_rule": claims.RULE,
        "settings": {
            model: {
                label: _setting(found, model, label, finish_reasons[model][label], diversity[model][label])
                for label in by_label
            }
            for model, by_label in found.verdicts.items()
        },
        "confidence": found.bootstrap.confidence,
        "bootstrap_samples": found.bootstrap.num_resamples,
        "num_problems": len(found.problems),
        "selection_problems": int(found.halves.selection.sum()),
        "num_samples": found.num_samples,
        "difficulties": {problem.id: difficulty_of(problem) for problem in found.problems},
        **facts,
    }


def headline_settings(found: Measurements, sampling: SamplingConfig) -> dict[str, tuple[ModelName, SamplingParams]]:
    """Row key -> (model, setting), for the models that were measured."""
    rows: dict[str, tuple[ModelName, SamplingParams]] = {}
    if "base" in found.verdicts:
        rows["base_default"] = "base", sampling.default
        rows["base_train"] = "base", sampling.train
        rows["base_best"] = "base", found.best("base")
    if "ssd" in found.verdicts:
        rows["ssd_best"] = "ssd", found.best("ssd")
    return rows


def table(summary: dict[str, Any]) -> str:
    """The headline and the claims for a terminal, in per cent and points."""
    rows = summary["headline"]
    ks = list(rows[0]["overall"]) if rows else []
    header = ["setting", "decoding", *(f"pass@{k}" for k in ks)]
    text = aligned([header, *([row["title"], row["decoding"], *_scores(row["overall"])] for row in rows)])
    gains = [row for row in rows if row["ssd_gain"]]
    if gains:
        header = [_TITLES["ssd_best"] + " against", f"ahead by, pass@{ks[0]}", "ahead", "behind", "tied", "sign test p"]
        text += ["", *aligned([header, *(_gain_cells(row["title"], row["ssd_gain"][ks[0]]) for row in gains)])]
    report_problems = summary["num_problems"] - summary["selection_problems"]
    text += ["", f"{report_problems} problems on which no setting was chosen, {summary['num_samples']} programs each; "
             f"{100 * summary['confidence']:g} % intervals over problems", ""]  # fmt: skip
    return "\n".join([*text, claim_lines(summary)])


def claim_lines(summary: dict[str, Any]) -> str:
    """Each claim with its status, and its evidence below."""
    return "\n".join(
        f"{claim['status']:9}  {claim['text']}\n           {claim['evidence']}" for claim in summary["claims"]
    )


def _row(
    found: Measurements,
    key: str,
    model: ModelName,
    decoding: SamplingParams,
    ssd: tuple[ModelName, SamplingParams] | None,
) -> dict[str, Any]:
    report, label = found.halves.report, decoding.label
    gains = None
    if ssd is not None and model == "base":
        gains = {
            str(k): _gain(found.bootstrap, found.scores("ssd", ssd[1].label, k)[report],
                          found.scores(model, label, k)[report])
            for k in found.ks
        }  # fmt: skip
    return {
        "key": key,
        "title": _TITLES[key],
        "model": model,
        "decoding": label,
        "num_problems": int(report.sum()),
        "num_samples": found.num_samples,
        "overall": _estimates(found.by_k(model, label, report)),
        "by_difficulty": _by_difficulty(found, model, label, on_report=True),
        "problems_by_difficulty": {
            name: int((mask & report).sum()) for name, mask in found.difficulties.items() if (mask & report).any()
        },
        "ssd_gain": gains,
    }


def _gain(bootstrap: Bootstrap, ours: Scores, theirs: Scores) -> dict[str, Any]:
    return {
        **bootstrap.difference(ours, theirs).interval_json(),
        "sign_test": dataclasses.asdict(sign_test(ours, theirs)),
    }


def _setting(
    found: Measurements, model: ModelName, label: str, finish_reasons: Mapping[str, int], diversity: Diversity
) -> dict[str, Any]:
    verdicts = found.verdicts[model][label]
    statuses = Counter(verdict.status for verdict in verdicts)
    return {
        "overall": _estimates(found.by_k(model, label, found.everywhere)),
        "by_difficulty": _by_difficulty(found, model, label, on_report=False),
        "n": {
            "problems": len(found.problems),
            "samples": len(verdicts),
            "left_out": statuses["infrastructure_error"],
        },
        "finish_reasons": dict(finish_reasons),
        "outcomes": dict(statuses.most_common()),
        "no_code": statuses["no_code"] / len(verdicts),
        "diversity": dataclasses.asdict(diversity),
    }


def _by_difficulty(found: Measurements, model: ModelName, label: str, *, on_report: bool) -> dict[str, Any]:
    where = found.halves.report if on_report else found.everywhere
    return {name: _estimates(by_k) for name, by_k in found.by_difficulty(model, label, where).items()}


def _estimates(by_k: Mapping[int, Estimate]) -> dict[str, dict[str, float | None]]:
    return {str(k): estimate.interval_json() for k, estimate in by_k.items()}


def _scores(by_k: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Per cent; of more than two, intervals at the ends alone, so that the table fits a terminal."""
    ends = 0, len(by_k) - 1
    return [_written(one, _percent, interval=place in ends) for place, one in enumerate(by_k.values())]


def _gain_cells(title: str, gain: Mapping[str, Any]) -> list[str]:
    return [title, _written(gain, signed), *split_cells(gain["sign_test"])]


def _written(estimate: Mapping[str, Any], form: Callable[[float], str], *, interval: bool = True) -> str:
    if estimate["value"] is None:
        return NOT_MEASURED
    value, low, high = (form(estimate[part]) for part in ("value", "low", "high"))
    return f"{value:>5} ({low} to {high})" if interval else f"{value:>5}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
