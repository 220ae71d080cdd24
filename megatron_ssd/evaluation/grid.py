"""The decode grid, from which the best cell of each model is chosen without selection bias.

Invariants:
- Base and tuned model have the same grid: ``temperatures`` x ``top_ks`` x ``top_ps``. If none is configured, it is the
  three named settings (default, training decode, evaluation decode).
- Outside the grid, the base is also measured at its default decode and at the training decode, and the tuned model at
  its configured evaluation decode.
- The best cell of a grid is the one with the highest pass@1 on the selection half; ties go to the first. Reported
  scores are measured on the other half, which is not used for the choice.
- The halves depend only on the ids and difficulties of the problems.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from megatron_ssd.config.evaluation import EvaluationConfig
from megatron_ssd.config.generation import SamplingConfig, SamplingParams
from megatron_ssd.errors import UserError
from megatron_ssd.evaluation.results import ModelName
from megatron_ssd.formatting import counted
from megatron_ssd.grading.metrics import Bootstrap, Estimate, Mask, Scores, problem_scores
from megatron_ssd.schema import Problem, Verdict

UNRATED = "unrated"  # the difficulty of problems that have none
_EXTENDED = ("humaneval_plus", "mbpp_plus")
_ORDER = {"easy": 0, "medium": 1, "hard": 2}  # any other names come after them


def grid_cells(config: EvaluationConfig, sampling: SamplingConfig) -> tuple[SamplingParams, ...]:
    """The distinct cells, ordered by temperature, then top-k, then top-p as configured."""
    cells = [
        SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
        for temperature, top_k, top_p in itertools.product(config.temperatures, config.top_ks, config.top_ps)
    ]
    return tuple(dict.fromkeys(cells or [sampling.default, sampling.train, sampling.eval]))


def settings_of(model: ModelName, config: EvaluationConfig, sampling: SamplingConfig) -> tuple[SamplingParams, ...]:
    """Every setting that ``model`` is decoded with: the grid first, then the settings outside it."""
    named = [sampling.default, sampling.train] if model == "base" else [sampling.eval]
    return tuple(dict.fromkeys([*grid_cells(config, sampling), *named]))


def hottest(cells: Sequence[SamplingParams]) -> SamplingParams:
    """The cell of the highest temperature; among those, the one that truncates least: by top-p first, then top-k."""
    return max(cells, key=lambda cell: (cell.temperature, cell.top_p, math.inf if cell.top_k == -1 else cell.top_k))


def difficulty_of(problem: Problem) -> str:
    """The name of the difficulty; ``UNRATED`` if there is none."""
    return problem.difficulty or UNRATED


@dataclass(frozen=True)
class Halves:
    """Disjoint masks over problems [P] that cover them all."""

    selection: Mask
    report: Mask


def split_halves(problems: Sequence[Problem]) -> Halves:
    """Sort the problems of each difficulty by the hash of their ids, and assign them alternately to the two halves.

    Raises:
        UserError: there are fewer than two problems.
    """
    if len(problems) < 2:
        raise UserError(
            f"benchmark with {counted(len(problems), 'problem')}",
            rule="settings are chosen on one half of the problems and reported on the other",
            fix="use at least two problems, for example with a larger limit",
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


def choose(cells: Sequence[SamplingParams], scores: Mapping[str, Scores], where: Mask) -> SamplingParams:
    """The best cell on the problems of ``where``.

    Args:
        cells: the grid.
        scores: label -> pass@1 over problems [P].
        where: the problems [P] to choose on.

    Raises:
        UserError: the checker failed on every one of these problems in some cell.
    """
    means = []
    for cell in cells:
        known = scores[cell.label][where & ~np.isnan(scores[cell.label])]
        if not len(known):
            raise UserError(
                f"evaluation at {cell.label}",
                rule="the checker itself failed on every problem of the selection half",
                fix="see the detail of the verdicts, fix the sandbox (make doctor), remove eval.partial/verdicts, and "
                "run the same command again",
            )
        means.append(float(known.mean()))
    return cells[means.index(max(means))]


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Scores [P] of every model and setting, all over the same problems in the same order.

    Args:
        problems: the benchmark; fixes the order of all arrays.
        cells: the grid that every model was decoded over.
        verdicts: model -> label of the setting -> verdicts.
        ks: the k of pass@k, ascending.
        num_samples: programs per problem and setting.
    """

    problems: Sequence[Problem]
    cells: Sequence[SamplingParams]
    verdicts: Mapping[ModelName, Mapping[str, Sequence[Verdict]]]
    ks: tuple[int, ...]
    num_samples: int
    bootstrap: Bootstrap
    _scores: dict[tuple[ModelName, str, int], Scores] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def halves(self) -> Halves:
        """The half that settings are chosen on, and the half that is reported."""
        return split_halves(self.problems)

    @cached_property
    def all_problems(self) -> Mask:
        """Every problem [P]."""
        return np.ones(len(self.problems), dtype=bool)

    @cached_property
    def difficulties(self) -> dict[str, Mask]:
        """Name -> mask [P], from easy to hard."""
        names = np.array([difficulty_of(problem) for problem in self.problems])
        ordered = sorted(set(names.tolist()), key=lambda name: (_ORDER.get(name, len(_ORDER)), name))
        return {name: names == name for name in ordered}

    def scores(self, model: ModelName, label: str, k: int) -> Scores:
        """pass@k of each problem [P]."""
        key = model, label, k
        if key not in self._scores:
            ids = [problem.id for problem in self.problems]
            self._scores[key] = problem_scores(self.verdicts[model][label], ids, k)
        return self._scores[key]

    def base_tests_by_k(self, model: ModelName, label: str, where: Mask) -> dict[int, Estimate] | None:
        """pass@k on the base tests alone for the problems of ``where`` [P]; None if there are no such tests.

        Of the two tests of HumanEval+ and MBPP+, the first is that of the benchmark that these extend.
        """
        if any(problem.source not in _EXTENDED or len(problem.tests) != 2 for problem in self.problems):
            return None
        ids, verdicts = [problem.id for problem in self.problems], self.verdicts[model][label]
        passed = {k: problem_scores(verdicts, ids, k, passed=lambda one: one.by_test[:1] == ".") for k in self.ks}
        return {k: self.bootstrap.mean(scores[where]) for k, scores in passed.items()}

    def best(self, model: ModelName, where: Mask | None = None) -> SamplingParams:
        """The best cell by pass@1 (or the smallest k that was measured).

        Args:
            model: the model.
            where: the problems [P] to choose on; None for the selection half.
        """
        scores = {cell.label: self.scores(model, cell.label, self.ks[0]) for cell in self.cells}
        return choose(self.cells, scores, self.halves.selection if where is None else where)

    def pass_at_1(self, model: ModelName, cell: SamplingParams, where: Mask) -> Estimate:
        """pass@1 (or the smallest k that was measured) on the problems of ``where`` [P]."""
        return self.bootstrap.mean(self.scores(model, cell.label, self.ks[0])[where])

    def by_k(self, model: ModelName, label: str, where: Mask) -> dict[int, Estimate]:
        """pass@k of every k on the problems of ``where`` [P]."""
        return {k: self.bootstrap.mean(self.scores(model, label, k)[where]) for k in self.ks}

    def by_difficulty(self, model: ModelName, label: str, where: Mask) -> dict[str, dict[int, Estimate]]:
        """The same for each difficulty that has a problem in ``where`` [P]."""
        return {
            name: self.by_k(model, label, mask & where)
            for name, mask in self.difficulties.items()
            if (mask & where).any()
        }
