"""Makes the tables of the experiment on real models from its committed results.

The test problems are those of HumanEval+ and of MBPP+'s tasks 11 to 510 together, and a program passes if it passes
all tests. All intervals are bootstrap intervals over problems, of 95 %, and differences are paired by problem. The best
cell of a model is chosen on one half of the problems, among the settings that base and SSD were both decoded with, and
is reported on the other half.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.real_coder_cells import CELLS, QWEN, SMOLLM
from benchmarks.real_coder_results import is_finished, read_summary, read_verdicts
from megatron_ssd.evaluation.grid import Halves, split_halves
from megatron_ssd.grading.metrics import Bootstrap, Estimate, Scores, problem_scores
from megatron_ssd.schema import Problem, Verdict

AUTHORS, TRAINING, GREEDY = "T1.1-k20-p0.8", "T1.6-k20-p0.8", "T0-k-1-p1"
SEEDS = ("SSD", "SSD, seed 1", "SSD, seed 2")
_PUBLISHED = (("humaneval_plus", "HumanEval", 61.6, 57.3), ("mbpp_plus", "MBPP", 52.4, 43.7))
_BOOTSTRAP = Bootstrap()


class Suite:
    """The scores of one base and of the models trained from it, on one set of problems.

    Args:
        verdicts: (title, label of the decode setting) -> the outcomes of all programs.
    """

    def __init__(self, verdicts: dict[tuple[str, str], list[Verdict]]) -> None:
        self._verdicts = verdicts
        self.ids = sorted({verdict.problem_id for found in verdicts.values() for verdict in found})

    @cached_property
    def scores(self) -> dict[tuple[str, str], Scores]:
        """(title, label) -> pass@1 of each problem [P]."""
        return {key: problem_scores(found, self.ids, 1) for key, found in self._verdicts.items()}

    def rows(self) -> Iterator[list[str]]:
        """A row for each setting on all problems: title, setting, problems, score, base at the same setting."""
        for (title, label), scores in self.scores.items():
            base = self.scores.get(("base", label)) if title != "base" else None
            yield self._row(title, label, scores, None if base is None else _BOOTSTRAP.difference(scores, base))
        if all((seed, AUTHORS) in self.scores for seed in (*SEEDS, "base")):
            mean = np.mean([self.scores[seed, AUTHORS] for seed in SEEDS], axis=0)
            difference = _BOOTSTRAP.difference(mean, self.scores["base", AUTHORS])
            yield self._row("SSD, mean of three seeds", AUTHORS, mean, difference)

    def best_rows(self) -> Iterator[list[str]]:
        """The best cells of base and SSD on the reporting half; none if they share fewer than two settings."""
        labels = [label for title, label in self.scores if title == "SSD" and ("base", label) in self.scores]
        if len(labels) < 2:
            return
        base, ssd = self._best("base", labels), self._best("SSD", labels)
        ours = self.scores["SSD", ssd][self._halves.report]
        for title, label in (("base at its best", base), ("base, greedy", GREEDY), ("base, training decode", TRAINING)):
            if ("base", label) in self.scores:
                scores = self.scores["base", label][self._halves.report]
                yield self._row(title, label, scores, _BOOTSTRAP.difference(ours, scores))
        yield self._row("SSD at its best", ssd, ours, None)

    def _best(self, title: str, labels: list[str]) -> str:
        chosen_on = self._halves.selection
        return max(labels, key=lambda label: float(np.nanmean(self.scores[title, label][chosen_on])))

    @cached_property
    def _halves(self) -> Halves:
        # The two benchmarks stand for difficulties, so that each half has as many problems of each.
        return split_halves([
            Problem(id=id_, source="", statement="", form="checks", difficulty=id_.partition("/")[0])
            for id_ in self.ids
        ])  # fmt: skip

    @staticmethod
    def _row(title: str, label: str, scores: Scores, difference: Estimate | None) -> list[str]:
        compared = "" if difference is None else _text(difference, sign="+")
        return [title, label, str(len(scores)), _text(_BOOTSTRAP.mean(scores)), compared]


def tables(results: Path) -> str:
    """Markdown with the status of every cell, the comparison with published scores, and a table for each set."""
    parts = [_markdown([["cell", "decoded", "problems", "estimated core hours", "status"], *_status(results)])]
    if ground := list(_ground(results)):
        parts.append(_markdown([["benchmark", "published", "here, greedy"], *ground]))
    head = ["model", "decoding", "problems", "pass@1, %", "minus the base"]
    for (base, name), suite in suites(results).items():
        parts.append(f"**{base}, {name} problems**\n\n{_markdown([head, *suite.rows()])}")
        if best := list(suite.best_rows()):
            head_of_best = [*head[:-1], "SSD at its best minus this"]
            parts.append(f"On the half of the problems that did not choose:\n\n{_markdown([head_of_best, *best])}")
    return "\n\n".join(parts)


def suites(results: Path) -> dict[tuple[str, str], Suite]:
    """(folder of the base, set of problems) -> scores, of all finished cells."""
    found: dict[tuple[str, str], dict[tuple[str, str], list[Verdict]]] = defaultdict(lambda: defaultdict(list))
    for cell in CELLS:
        if is_finished(cell, results):
            for (_, model, label), verdict in read_verdicts(cell, results):
                title = "base" if model == "base" else cell.title
                name = "test" if cell.benchmark == "ground" else cell.benchmark
                if cell.benchmark != "ground" or is_test_problem(verdict.problem_id):
                    found[cell.model, name][title, label].append(verdict)
    return {
        (base, name): Suite(dict(found[base, name]))
        for base in (QWEN, SMOLLM)
        for name in ("validation", "test", "codeforces")
        if (base, name) in found
    }


def is_test_problem(id_: str) -> bool:
    """Whether a problem of HumanEval+ or MBPP+ is one of the test problems."""
    benchmark, _, number = id_.partition("/")
    return benchmark == "HumanEval" or 11 <= int(number) <= 510


def _status(results: Path) -> Iterator[list[str]]:
    for cell in CELLS:
        done = is_finished(cell, results)
        status = f"{read_summary(cell, results)['core_hours']:.2f} core hours" if done else "not run"
        yield [cell.name, cell.title, cell.benchmark, str(cell.hours), status]


def _ground(results: Path) -> Iterator[list[str]]:
    cell = next(cell for cell in CELLS if cell.benchmark == "ground")
    if not is_finished(cell, results):
        return
    for name, title, published, published_plus in _PUBLISHED:
        (setting,) = read_summary(cell, results)["benchmarks"][name]["settings"]["base"].values()
        for suffix, score, value in (("", "base_tests", published), ("+", "overall", published_plus)):
            estimate = Estimate(**setting[score]["1"])
            yield [f"{title}{suffix}", f"{value}", _text(estimate)]


def _text(estimate: Estimate, *, sign: str = "") -> str:
    value, low, high = (format(100 * number, f"{sign}.1f") for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"


def _markdown(rows: list[list[str]]) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))
