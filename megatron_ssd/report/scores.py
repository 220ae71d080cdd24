"""``eval/summary.json`` as records. The one place of the report that knows that file's keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_ssd.errors import UserError
from megatron_ssd.evaluation.diversity import Diversity
from megatron_ssd.grading.metrics import SignTest
from megatron_ssd.problems.errata import Errata
from megatron_ssd.report.records import BestCell, Claim, EffectivePoint, Estimate, GridCell, Score, Scores, Sweep


def read_scores(path: Path) -> Scores:
    """What the evaluation stage wrote.

    Raises:
        UserError: the file is missing or lacks something that the report shows.
    """
    if not path.is_file():
        raise UserError(f"file {path}", rule="does not exist", fix="run launch/evaluate.py to its end")
    try:
        scores = _scores(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"file {path}",
            rule=f"is no evaluation summary of this version ({type(error).__name__}: {error})",
            fix="run launch/evaluate.py again with replace=true",
        ) from None
    missing = {"base_default", "base_train", "base_best", "ssd_best"} - {score.key for score in scores.headline}
    if missing:
        raise UserError(
            f"file {path}", rule=f"has no {', '.join(sorted(missing))}", fix="evaluate both base and tuned model"
        )
    return scores


def _scores(summary: dict[str, Any]) -> Scores:
    headline = tuple(_score(row, summary["settings"][row["model"]][row["decoding"]]) for row in summary["headline"])
    return Scores(
        headline=headline,
        sweep=read_sweep(summary),
        claims=tuple(Claim(**claim) for claim in summary["claims"]),
        confidence=summary["confidence"],
        selection_problems=summary["selection_problems"],
        difficulties=summary["difficulties"],
        outcomes={
            row.model: summary["settings"][row.model][row.decoding]["outcomes"]
            for row in headline
            if row.key in ("base_best", "ssd_best")
        },
        claim_rule=summary["claim_rule"],
        errata=Errata(**summary["errata"]),
    )


def read_sweep(summary: dict[str, Any]) -> Sweep:
    """The decode settings' part of ``eval/summary.json``."""
    beside, effective = summary["beside_grid"], summary["effective_temperature"]
    return Sweep(
        grid=tuple(_cell(cell) for cell in summary["grid"]),
        beside_grid=None if beside is None else _cell(beside),
        best_cells=tuple(_best_cell(best) for best in summary["best_of_grid"]),
        effective=tuple(
            EffectivePoint(
                **_setting(point),
                effective_temperature=point["effective_temperature"],
                estimate=Estimate.from_json(point),
            )
            for point in effective["points"]
        ),
        train_temperature=effective["train_temperature"],
    )


def _cell(cell: dict[str, Any]) -> GridCell:
    return GridCell(
        **_setting(cell), score=cell["pass_at_1"], chosen=cell["chosen"], training=cell["training"]
    )  # fmt: skip


def _setting(row: dict[str, Any]) -> dict[str, Any]:
    shared = {name: row[name] for name in ("model", "decoding", "temperature", "top_k", "top_p")}
    return {**shared, "further": row["min_p"] != 0 or row["repetition_penalty"] != 1}


def _best_cell(best: dict[str, Any]) -> BestCell:
    naive, means = best["on_all_problems"], best["grid_mean"]
    return BestCell(
        model=best["model"],
        decoding=best["decoding"],
        num_cells=best["num_cells"],
        selection=Estimate.from_json(best["selection"]),
        report=Estimate.from_json(best["report"]),
        grid_means=(means["selection"], means["report"]),
        on_all_problems=Estimate.from_json(naive),
        decoding_on_all_problems=naive["decoding"],
    )


def _score(row: dict[str, Any], setting: dict[str, Any]) -> Score:
    gain = row["ssd_gain"]
    return Score(
        key=row["key"],
        title=row["title"],
        model=row["model"],
        decoding=row["decoding"],
        num_problems=row["num_problems"],
        num_samples=row["num_samples"],
        overall=_estimates(row["overall"]),
        by_difficulty={name: _estimates(values) for name, values in row["by_difficulty"].items()},
        problems_by_difficulty=row["problems_by_difficulty"],
        ssd_gain=None if gain is None else _estimates(gain),
        sign_tests=None if gain is None else {int(k): SignTest(**one["sign_test"]) for k, one in gain.items()},
        diversity=Diversity(**setting["diversity"]),
        no_code=setting["no_code"],
    )


def _estimates(values: dict[str, dict[str, Any]]) -> dict[int, Estimate]:
    return {int(k): Estimate.from_json(value) for k, value in values.items()}
