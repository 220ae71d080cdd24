"""All scores of an evaluation in one place: by model, setting and k, over the same problems in the same order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.evaluation.grid import Halves, ModelName, choose, difficulty_of, split_halves
from megatron_ssd.grading.metrics import Bootstrap, Estimate, Mask, Scores, problem_scores
from megatron_ssd.schema import Problem, Verdict

_ORDER = {"easy": 0, "medium": 1, "hard": 2}  # the usual names in their usual order, any others after them


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Scores [P] of every model and setting.

    Args:
        problems: the benchmark; fixes the order of all arrays.
        cells: the grid that every model was decoded over.
        verdicts: model -> label of the setting -> verdicts.
        ks: the k of pass@k, ascending.
        num_samples: programs a problem and setting.
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
        """On what is chosen, and on what is reported."""
        return split_halves(self.problems)

    @cached_property
    def everywhere(self) -> Mask:
        """All problems [P]."""
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

    def best(self, model: ModelName) -> SamplingParams:
        """The cell that the selection half picks, by pass@1 (or the smallest k that was measured)."""
        return self.best_on(model, self.halves.selection)

    def best_on(self, model: ModelName, where: Mask) -> SamplingParams:
        """The cell that the problems of ``where`` [P] pick."""
        scores = {cell.label: self.scores(model, cell.label, self.ks[0]) for cell in self.cells}
        return choose(self.cells, scores, where)

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
