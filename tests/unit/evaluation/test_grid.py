"""The grid, the two halves and the choice."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from megatron_ssd.config.evaluation import EvaluationConfig
from megatron_ssd.config.generation import Decoding, SamplingConfig
from megatron_ssd.errors import ConfigError, UserError
from megatron_ssd.evaluation.grid import choose, grid_cells, settings_of, split_halves
from megatron_ssd.schema import Problem
from tests.unit.evaluation.programs import function_problem

SAMPLING = SamplingConfig(
    train=Decoding(temperature=1.5, top_k=20, top_p=0.6),
    eval=Decoding(temperature=1.5, top_k=20, top_p=0.8),
    default=Decoding(temperature=1.0, top_k=20, top_p=0.8),
)
CONFIG = EvaluationConfig(temperatures=(1.0, 1.5), top_ps=(0.6, 0.8))


def problems(count: int) -> list[Problem]:
    names = ("easy", "medium", "hard")
    return [function_problem(f"p{i}", difficulty=names[i % 3]) for i in range(count)]


def test_base_and_ssd_have_the_same_grid():
    cells = grid_cells(CONFIG, SAMPLING)
    assert [cell.label for cell in cells] == ["T1-k20-p0.6", "T1-k20-p0.8", "T1.5-k20-p0.6", "T1.5-k20-p0.8"]
    for model in ("base", "ssd"):
        assert settings_of(model, CONFIG, SAMPLING)[:4] == cells


def test_what_stands_beside_the_grid_is_measured_once():
    off_grid = dataclasses.replace(SAMPLING, train=Decoding(temperature=2.0, top_k=10), default=Decoding())
    assert settings_of("base", CONFIG, off_grid)[4:] == (off_grid.default, off_grid.train)
    assert settings_of("ssd", CONFIG, off_grid)[4:] == ()
    assert len(settings_of("base", CONFIG, SAMPLING)) == 4


def test_without_a_grid_the_three_named_settings_are_it():
    cells = grid_cells(EvaluationConfig(), SAMPLING)
    assert cells == (SAMPLING.default, SAMPLING.train, SAMPLING.eval)
    assert (
        settings_of("base", EvaluationConfig(), SAMPLING) == settings_of("ssd", EvaluationConfig(), SAMPLING) == cells
    )


@pytest.mark.parametrize("changes", [{"temperatures": (1.0,)}, {"top_ps": (0.5,)}])
def test_half_a_grid_is_an_error(changes: dict[str, tuple[float, ...]]):
    with pytest.raises(ConfigError, match="both are set or neither"):
        EvaluationConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [2, 3, 7, 30, 100])
def test_halves_are_disjoint_cover_all_and_are_balanced(count: int):
    halves = split_halves(problems(count))
    assert (halves.selection ^ halves.report).all()
    assert abs(int(halves.selection.sum()) - int(halves.report.sum())) <= 1
    names = np.array([problem.difficulty for problem in problems(count)])
    for name in set(names):
        assert abs(int(halves.selection[names == name].sum()) - int(halves.report[names == name].sum())) <= 1


def test_a_problem_keeps_its_half_in_any_order():
    rows = problems(40)
    halves, turned = split_halves(rows), split_halves(rows[::-1])
    assert (halves.selection == turned.selection[::-1]).all()


def test_one_problem_cannot_be_halved():
    with pytest.raises(UserError, match="at least two problems"):
        split_halves(problems(1))


def test_the_choice_looks_at_the_selection_half_only():
    cells = grid_cells(CONFIG, SAMPLING)[:2]
    selection = np.array([True, True, False, False])
    scores = {cells[0].label: np.array([0.2, 0.2, 1, 1]), cells[1].label: np.array([0.3, 0.2, 0, 0])}
    assert choose(cells, scores, selection) == cells[1]
    scores[cells[0].label][2:] = 0.0
    assert choose(cells, scores, selection) == cells[1]


def test_a_tie_goes_to_the_first_cell():
    cells = grid_cells(CONFIG, SAMPLING)
    scores = {cell.label: np.array([0.5, 0.5]) for cell in cells}
    assert choose(cells, scores, np.array([True, True])) == cells[0]


def test_a_cell_that_was_never_judged_is_an_error():
    cells = grid_cells(CONFIG, SAMPLING)[:1]
    with pytest.raises(UserError, match="the judge itself failed"):
        choose(cells, {cells[0].label: np.array([np.nan, 1.0])}, np.array([True, False]))
