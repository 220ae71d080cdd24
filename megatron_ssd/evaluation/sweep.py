"""What the decode settings did, as parts of ``summary.json``.

- The grid on the selection half, and the base at the training decode where that stands beside the grid.
- How far choosing flatters: each model's best cell on the half that chose it, on the other half, and what choosing and
  reporting on the same problems would have claimed. The halves hold different problems, so their means over the whole
  grid stand beside: a best cell that falls by more than those differ owes it to the choice.
- pass@1 over the effective temperature, on the reporting half. A model that learned from samples drawn at ``T_train``
  is decoded at ``T_eval``: the two multiply, ``T_eff = T_train x T_eval``, as far as training reaches
  p ** (1 / T_train) on the tokens that the training decode keeps (arXiv 2604.01193, which finds that T_eff alone
  explains much of its sweep of the two, with a peak near 1.2). The base was trained on no such samples: its T_eff is
  ``T_eval``. Truncation is no part of T_eff, so only settings of one top-k and top-p compare.
"""

from __future__ import annotations

import dataclasses
import math
from statistics import fmean
from typing import Any

from megatron_ssd.config.generation import SamplingConfig, SamplingParams
from megatron_ssd.evaluation.grid import ModelName
from megatron_ssd.evaluation.measurements import Measurements
from megatron_ssd.grading.metrics import Estimate, Mask


def grid_rows(found: Measurements, sampling: SamplingConfig) -> list[dict[str, Any]]:
    """pass@1 of every model and cell on the selection half, and which cell is what."""
    best = {model: found.best(model) for model in found.verdicts}
    return [
        {
            "model": model,
            **_setting(cell),
            "pass_at_1": _pass_at_1(found, model, cell, found.halves.selection).interval_json()["value"],
            "chosen": cell == best[model],
            "training": cell == sampling.train,
        }
        for model in found.verdicts
        for cell in found.cells
    ]


def beside_grid(found: Measurements, sampling: SamplingConfig) -> dict[str, Any] | None:
    """The base at the training decode in the form of a row of the grid; None where it is one, or without a base.

    It is no candidate for the best cell: base and tuned model choose among the same ones.
    """
    if sampling.train in found.cells or "base" not in found.verdicts:
        return None
    score = _pass_at_1(found, "base", sampling.train, found.halves.selection).interval_json()["value"]
    return {"model": "base", **_setting(sampling.train), "pass_at_1": score, "chosen": False, "training": True}


def best_of_grid(found: Measurements) -> list[dict[str, Any]]:
    """For each model, the chosen cell on either half, the mean over the grid there, and the score of a naive choice."""
    return [_best_of_grid(found, model) for model in found.verdicts]


def effective_temperatures(found: Measurements, sampling: SamplingConfig) -> dict[str, Any]:
    """pass@1 on the reporting half of every model and cell, with its T_eff."""
    train = {"base": 1.0, "ssd": sampling.train.temperature}
    return {
        "train_temperature": sampling.train.temperature,
        "points": [
            {
                "model": model,
                **_setting(cell),
                "effective_temperature": train[model] * cell.temperature,
                **_pass_at_1(found, model, cell, found.halves.report).interval_json(),
            }
            for model in found.verdicts
            for cell in found.cells
        ],
    }


def _best_of_grid(found: Measurements, model: ModelName) -> dict[str, Any]:
    best, naive = found.best(model), found.best_on(model, found.everywhere)
    halves = {"selection": found.halves.selection, "report": found.halves.report}
    return {
        "model": model,
        "decoding": best.label,
        "num_cells": len(found.cells),
        **{name: _pass_at_1(found, model, best, half).interval_json() for name, half in halves.items()},
        "grid_mean": {name: _grid_mean(found, model, half) for name, half in halves.items()},
        "on_all_problems": {
            "decoding": naive.label,
            **_pass_at_1(found, model, naive, found.everywhere).interval_json(),
        },
    }


def _grid_mean(found: Measurements, model: ModelName, where: Mask) -> float | None:
    """The mean over the cells that were measured there; None where none was, since NaN is no JSON."""
    scores = [_pass_at_1(found, model, cell, where).value for cell in found.cells]
    known = [score for score in scores if not math.isnan(score)]
    return fmean(known) if known else None


def _pass_at_1(found: Measurements, model: ModelName, cell: SamplingParams, where: Mask) -> Estimate:
    """pass@1, or of the smallest k that was measured."""
    return found.bootstrap.mean(found.scores(model, cell.label, found.ks[0])[where])


def _setting(cell: SamplingParams) -> dict[str, Any]:
    return {"decoding": cell.label, **dataclasses.asdict(cell)}
