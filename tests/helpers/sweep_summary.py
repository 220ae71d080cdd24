"""The part of a made-up ``eval/summary.json`` on decode settings, whose scores peak at one T_eff."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.evaluation.results import EvaluationResults, ModelName, from_json

MODELS: tuple[ModelName, ...] = ("base", "ssd")
TRAIN = SamplingParams(temperature=1.6, top_k=20, top_p=0.8)


def cells_of(
    temperatures: Sequence[float], top_ks: Sequence[int], top_ps: Sequence[float]
) -> tuple[SamplingParams, ...]:
    """The grid that these values span."""
    return tuple(
        SamplingParams(temperature=t, top_k=k, top_p=p) for t, k, p in itertools.product(temperatures, top_ks, top_ps)
    )


def sweep_summary(
    cells: Sequence[SamplingParams],
    *,
    best: dict[str, str] | None = None,
    train: SamplingParams = TRAIN,
    scale: float = 1.0,
) -> dict[str, Any]:
    """The keys ``grid`` to ``effective_temperature``; ``best`` maps a model to the label of its chosen cell."""
    rng = random.Random(3)
    selection, report = (
        {(model, cell): scale * _score(model, cell, train, rng) for model in MODELS for cell in (*cells, train)}
        for _ in range(2)
    )
    chosen = {
        model: next(
            (cell for cell in cells if cell.label == (best or {}).get(model)),
            max(cells, key=lambda cell: selection[model, cell]),
        )
        for model in MODELS
    }
    beside = _row("base", train, selection["base", train], train=train)
    return {
        "grid": [
            _row(model, cell, selection[model, cell], train=train, chosen=cell == chosen[model])
            for model, cell in itertools.product(MODELS, cells)
        ],
        "beside_grid": None if train in cells else beside,
        "best_of_grid": [_best(model, cells, chosen[model], selection, report, scale) for model in MODELS],
        "effective_temperature": {
            "train_temperature": train.temperature,
            "points": list(_points(cells, report, train, scale)),
        },
    }


def sweep_results(
    cells: Sequence[SamplingParams], *, train: SamplingParams = TRAIN, scale: float = 1.0
) -> EvaluationResults:
    """Results that contain only the output of ``sweep_summary``; they are empty if ``cells`` is."""
    empty = {"grid": [], "beside_grid": None, "best_of_grid": [],
             "effective_temperature": {"train_temperature": train.temperature, "points": []}}  # fmt: skip
    summary = {
        **(sweep_summary(cells, train=train, scale=scale) if cells else empty),
        "benchmark": "minicode", "format": "minicode",
        "headline": [], "claims": [], "claim_rule": "", "settings": {}, "difficulties": {}, "engine": {},
        "confidence": 0.95, "bootstrap_samples": 100, "num_problems": 6, "selection_problems": 3, "num_samples": 3,
        "sandbox": "bubblewrap", "prompt_opens_thinking": False,
        "errata": {"flaws": {}, "num_problems": 6, "kept": True},
    }  # fmt: skip
    return from_json(json.dumps(summary), EvaluationResults)


def _score(model: ModelName, cell: SamplingParams, train: SamplingParams, rng: random.Random) -> float:
    heat = math.log(_effective(model, cell, train) * (0.75 + 0.25 * cell.top_p) + 1e-3) - math.log(1.2)
    width = 0.9 if model == "base" else 0.4  # a tuned model degrades less at high temperature
    hot = max(heat, 0.0) * (0.6 if cell.top_k == -1 else 0.2)
    return max((0.42 if model == "base" else 0.5) - 0.12 * width * heat**2 - width * hot**2 + rng.gauss(0, 0.008), 0.0)


def _effective(model: ModelName, cell: SamplingParams, train: SamplingParams) -> float:
    return cell.temperature * (train.temperature if model == "ssd" else 1.0)


def _setting(model: ModelName, cell: SamplingParams) -> dict[str, Any]:
    return {"model": model, "decoding": cell.label, **dataclasses.asdict(cell)}


def _row(
    model: ModelName, cell: SamplingParams, score: float, *, train: SamplingParams, chosen: bool = False
) -> dict[str, Any]:
    return {**_setting(model, cell), "pass_at_1": score, "chosen": chosen, "training": cell == train}


def _best(
    model: ModelName,
    cells: Sequence[SamplingParams],
    chosen: SamplingParams,
    selection: dict[tuple[ModelName, SamplingParams], float],
    report: dict[tuple[ModelName, SamplingParams], float],
    scale: float,
) -> dict[str, Any]:
    both = {cell: (selection[model, cell] + report[model, cell]) / 2 for cell in cells}
    naive = max(cells, key=lambda cell: both[cell])
    means = [sum(half[model, cell] for cell in cells) / len(cells) for half in (selection, report)]
    return {
        "model": model, "decoding": chosen.label, "num_cells": len(cells),
        "selection": _estimate(selection[model, chosen], scale), "report": _estimate(report[model, chosen], scale),
        "grid_mean": dict(zip(("selection", "report"), means, strict=True)),
        "on_all_problems": {"decoding": naive.label, **_estimate(both[naive], scale)},
    }  # fmt: skip


def _points(
    cells: Sequence[SamplingParams],
    report: dict[tuple[ModelName, SamplingParams], float],
    train: SamplingParams,
    scale: float,
) -> Iterator[dict[str, Any]]:
    for model, cell in itertools.product(MODELS, cells):
        effective = _effective(model, cell, train)
        yield {**_setting(model, cell), "effective_temperature": effective, **_estimate(report[model, cell], scale)}


def _estimate(value: float, scale: float) -> dict[str, float]:
    return {"value": value, "low": max(value - 0.035 * scale, 0.0), "high": value + 0.035 * scale}
