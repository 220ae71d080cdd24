"""Which decode settings are measured, and how a model's best one is found without favouring it.

Invariants:
- Base and tuned model have the same grid: ``temperatures`` x ``top_ks`` x ``top_ps``; where none is configured, the
  three named settings (default, training decode, evaluation decode).
- Beside the grid the base is measured at its default decode and at the decode that made the training data, the tuned
  model at its configured evaluation decode.
- The best cell of a grid is the one with the highest pass@1 on the selection half; ties go to the first. What is
  reported is measured on the other half, which took no part in the choice.
- The halves depend on the problems' ids and difficulties alone.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from megatron_ssd.config.evaluation import EvaluationConfig
from megatron_ssd.config.generation import SamplingConfig, SamplingParams
from megatron_ssd.errors import UserError
from megatron_ssd.grading.metrics import Mask, Scores
from megatron_ssd.schema import Problem

ModelName = Literal["base", "ssd"]
UNRATED = "unrated"  # the difficulty of problems that have none


@dataclass(frozen=True)
class Halves:
    """Disjoint masks over problems [P] that cover them all."""

    selection: Mask
    report: Mask


def grid_cells(config: EvaluationConfig, sampling: SamplingConfig) -> tuple[SamplingParams, ...]:
    """The cells, temperature by temperature and in it top-k by top-k, each once."""
    cells = [
        SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
        for temperature, top_k, top_p in itertools.product(config.temperatures, config.top_ks, config.top_ps)
    ]
    return tuple(dict.fromkeys(cells or [sampling.default, sampling.train, sampling.eval]))


def settings_of(model: ModelName, config: EvaluationConfig, sampling: SamplingConfig) -> tuple[SamplingParams, ...]:
    """Every setting that ``model`` is decoded with: the grid first, then what it has beside it."""
    named = [sampling.default, sampling.train] if model == "base" else [sampling.eval]
    return tuple(dict.fromkeys([*grid_cells(config, sampling), *named]))


def hottest(cells: Sequence[SamplingParams]) -> SamplingParams:
    """The cell of the highest temperature, and among those the one that cuts the least: top-p first, then top-k."""
    return max(cells, key=lambda cell: (cell.temperature, cell.top_p, math.inf if cell.top_k == -1 else cell.top_k))


def difficulty_of(problem: Problem) -> str:
    """The difficulty's name; ``UNRATED`` where there is none."""
    return problem.difficulty or UNRATED


def split_halves(problems: Sequence[Problem]) -> Halves:
    """Each difficulty's problems in the order of their ids' hashes, dealt in turn to the two halves.

    Raises:
        UserError: there are fewer than two problems.
    """
    if len(problems) < 2:
        raise UserError(
            f"benchmark with {len(problems)} problem",
            rule="settings are chosen on one half of the problems and reported on the other",
            fix="take at least two problems, for example by a larger benchmark.limit",
        )
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for index, problem in enumerate(problems):
        groups[difficulty_of(problem)].append(index)
    order = [
        index
        for name in sorted(groups)
        for index in sorted(groups[name], key=lambda i: hashlib.sha256(problems[i].id.encode()).digest())
    ]
    selection = np.zeros(len(problems), dtype=bool)
    selection[order[::2]] = True
    return Halves(selection=selection, report=~selection)


def choose(cells: Sequence[SamplingParams], scores: Mapping[str, Scores], selection: Mask) -> SamplingParams:
    """The best cell on the problems of ``selection``.

    Args:
        cells: the grid.
        scores: label -> pass@1 over problems [P].
        selection: where to choose [P]: the selection half, unless the flattery of choosing elsewhere is measured.

    Raises:
        UserError: there the judge failed on every problem of some cell.
    """
    means = []
    for cell in cells:
        known = scores[cell.label][selection & ~np.isnan(scores[cell.label])]
        if not len(known):
            raise UserError(
                f"evaluation at {cell.label}",
                rule="the judge itself failed on every problem of the selection half",
                fix="see the verdicts' detail, mend the sandbox (make doctor), remove eval.partial/verdicts, and go on",
            )
        means.append(float(known.mean()))
    return cells[means.index(max(means))]
