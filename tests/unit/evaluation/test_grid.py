"""Tests for the grid of decode settings."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ssd.config.evaluation import EvaluationConfig
from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.errors import ConfigError, UserError
from megatron_ssd.evaluation.grid import choose, grid_cells, hottest, settings_of, split_halves
from tests.helpers.measured import SAMPLING
from tests.helpers.measured import graded_problems as problems
from tests.helpers.programs import function_problem

CONFIG = EvaluationConfig(temperatures=(1.0, 1.5), top_ps=(0.6, 0.8))
TEMPERATURES = st.lists(st.sampled_from([0.0, 0.6, 0.7, 1.0, 1.5, 2.0]), min_size=1, max_size=6)
TOP_KS = st.lists(st.sampled_from([-1, 1, 10, 20, 50]), min_size=1, max_size=3)
TOP_PS = st.lists(st.sampled_from([0.5, 0.8, 0.95, 1.0]), min_size=1, max_size=5)
SCORES = st.lists(st.lists(st.integers(0, 10), min_size=8, max_size=8), min_size=1, max_size=6)


def test_base_and_ssd_have_the_same_grid():
    cells = grid_cells(CONFIG, SAMPLING)
    assert [cell.label for cell in cells] == ["T1-k20-p0.6", "T1-k20-p0.8", "T1.5-k20-p0.6", "T1.5-k20-p0.8"]
    for model in ("base", "ssd"):
        assert settings_of(model, CONFIG, SAMPLING)[:4] == cells


def test_settings_outside_the_grid_are_measured_once():
    off_grid = dataclasses.replace(SAMPLING, train=SamplingParams(temperature=2.0, top_k=10), default=SamplingParams())
    assert settings_of("base", CONFIG, off_grid)[4:] == (off_grid.default, off_grid.train)
    assert settings_of("ssd", CONFIG, off_grid)[4:] == ()
    assert len(settings_of("base", CONFIG, SAMPLING)) == 4


def test_without_a_grid_the_three_named_settings_are_used():
    cells = grid_cells(EvaluationConfig(), SAMPLING)
    assert cells == (SAMPLING.default, SAMPLING.train, SAMPLING.eval)
    assert (
        settings_of("base", EvaluationConfig(), SAMPLING) == settings_of("ssd", EvaluationConfig(), SAMPLING) == cells
    )


def test_several_top_ks_are_ordered_between_temperature_and_top_p():
    config = EvaluationConfig(temperatures=(1.0, 1.5), top_ks=(10, -1), top_ps=(0.8,))
    labels = [cell.label for cell in grid_cells(config, SAMPLING)]
    assert labels == ["T1-k10-p0.8", "T1-k-1-p0.8", "T1.5-k10-p0.8", "T1.5-k-1-p0.8"]


@given(TEMPERATURES, TOP_KS, TOP_PS)
def test_a_grid_has_every_combination_once_and_the_base_also_the_training_decode(
    temperatures: list[float], top_ks: list[int], top_ps: list[float]
):
    config = EvaluationConfig(temperatures=tuple(temperatures), top_ks=tuple(top_ks), top_ps=tuple(top_ps))
    cells = grid_cells(config, SAMPLING)
    wanted = set(itertools.product(temperatures, top_ks, top_ps))
    assert {(cell.temperature, cell.top_k, cell.top_p) for cell in cells} == wanted
    assert len(cells) == len(wanted) == len({cell.label for cell in cells})
    for model in ("base", "ssd"):
        settings = settings_of(model, config, SAMPLING)
        assert settings[: len(cells)] == cells
        assert len({cell.label for cell in settings}) == len(settings)
    assert SAMPLING.train in settings_of("base", config, SAMPLING)


def test_the_hottest_cell_truncates_the_least_at_the_highest_temperature():
    config = EvaluationConfig(temperatures=(1.0, 2.0), top_ks=(-1, 10, 20), top_ps=(0.8, 1.0))
    assert hottest(grid_cells(config, SAMPLING)).label == "T2-k-1-p1"
    assert hottest(grid_cells(dataclasses.replace(config, top_ks=(20, 10)), SAMPLING)).label == "T2-k20-p1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_ks": ()}, r"top_ks = \[\]: must hold at least one top-k"),
        ({"top_ks": (20, 0)}, r"top_k = 0: must be -1 \(off\) or positive; .*-1 is what vLLM also calls 0"),
        (
            {"top_ks": (20, 10), "temperatures": (), "top_ps": ()},
            "makes the grid together with evaluation.temperatures",
        ),
    ],
)
def test_an_invalid_top_k_is_an_error(changes: dict[str, tuple[int, ...]], message: str):
    with pytest.raises(ConfigError, match=message):
        EvaluationConfig(**{"temperatures": (1.0,), "top_ps": (0.8,), **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"temperatures": (1.0,)}, {"top_ps": (0.5,)}])
def test_half_a_grid_is_an_error(changes: dict[str, tuple[float, ...]]):
    with pytest.raises(ConfigError, match="set both or neither"):
        EvaluationConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [2, 3, 7, 30, 100])
def test_halves_are_disjoint_complete_and_balanced(count: int):
    halves = split_halves(problems(count))
    assert (halves.selection ^ halves.report).all()
    assert abs(int(halves.selection.sum()) - int(halves.report.sum())) <= 1
    names = np.array([problem.difficulty for problem in problems(count)])
    for name in set(names):
        assert abs(int(halves.selection[names == name].sum()) - int(halves.report[names == name].sum())) <= 1


def test_a_problem_keeps_its_half_in_any_order():
    found = problems(40)
    halves, reversed_halves = split_halves(found), split_halves(found[::-1])
    assert (halves.selection == reversed_halves.selection[::-1]).all()


def test_one_problem_cannot_be_split():
    with pytest.raises(UserError, match="at least two problems"):
        split_halves(problems(1))


def test_the_choice_uses_only_the_selection_half():
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


def test_a_cell_without_grades_is_an_error():
    cells = grid_cells(CONFIG, SAMPLING)[:1]
    with pytest.raises(UserError, match="the checker itself failed"):
        choose(cells, {cells[0].label: np.array([np.nan, 1.0])}, np.array([True, False]))


@given(st.lists(st.sampled_from(["easy", "medium", "hard", None]), min_size=2, max_size=60), st.randoms())
def test_any_benchmark_is_split_evenly_and_independently_of_order(names: list[str | None], random):
    found = [function_problem(f"p{i}", difficulty=name) for i, name in enumerate(names)]
    halves = split_halves(found)
    assert (halves.selection ^ halves.report).all()
    for name in {None, *names}:
        group = np.array([name is None or problem.difficulty == name for problem in found])
        assert abs(int(halves.selection[group].sum()) - int(halves.report[group].sum())) <= 1
    shuffled = random.sample(found, len(found))
    again = split_halves(shuffled)
    chosen = {problem.id for problem, inside in zip(found, halves.selection, strict=True) if inside}
    assert chosen == {problem.id for problem, inside in zip(shuffled, again.selection, strict=True) if inside}


@given(SCORES, SCORES)
def test_scores_of_the_reporting_half_do_not_change_the_choice(table: list[list[int]], other: list[list[int]]):
    cells, scores = _scored(table)
    selection = np.arange(8) < 4
    best = choose(cells, scores, selection)
    assert scores[best.label][selection].mean() == max(values[selection].mean() for values in scores.values())
    for cell, values in zip(cells, itertools.cycle(other)):
        scores[cell.label] = np.where(selection, scores[cell.label], np.array(values) / 10)
    assert choose(cells, scores, selection) == best


@given(SCORES)
def test_choosing_on_all_problems_scores_at_least_as_high(table: list[list[int]]):
    cells, scores = _scored(table)
    everywhere = np.ones(8, dtype=bool)
    honest = choose(cells, scores, np.arange(8) < 4)
    naive = choose(cells, scores, everywhere)
    assert scores[naive.label].mean() >= scores[honest.label].mean()


def _scored(table: list[list[int]]) -> tuple[tuple[SamplingParams, ...], dict[str, np.ndarray]]:
    cells = tuple(SamplingParams(temperature=0.1 * i) for i in range(len(table)))
    return cells, {cell.label: np.array(scores) / 10 for cell, scores in zip(cells, table, strict=True)}
