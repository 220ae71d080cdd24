"""Tests for the plots of decode settings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.evaluation.results import EffectivePoint, EvaluationResults
from megatron_ssd.report import decode_plots
from megatron_ssd.report.plots import Plot
from megatron_ssd.report.theme import HEAT_LEVELS
from tests.helpers.sweep_summary import TRAIN, cells_of, sweep_results

TEMPERATURES, TOP_KS, TOP_PS = (0.7, 0.9, 1.1, 1.6), (20, 10, -1), (0.8, 0.95, 1.0)
SWEEP = sweep_results(cells_of(TEMPERATURES, TOP_KS, TOP_PS))


def with_points(*points: EffectivePoint) -> EvaluationResults:
    """``SWEEP`` with other points over the effective temperature."""
    effective = dataclasses.replace(SWEEP.effective_temperature, points=points)
    return dataclasses.replace(SWEEP, effective_temperature=effective)


def rows_of(plots: Sequence[Plot]) -> dict[str, list[dict[str, Any]]]:
    """Title of each plot -> the rows of its data."""
    return {plot.title: plot.spec["data"]["values"] for plot in plots}


def dashes(plot: Plot) -> list[list[float]] | None:
    """Line patterns of a plot over the effective temperature; None if its lines are means."""
    encodings = [layer["encoding"] for layer in plot.spec["layer"]]
    return next((encoding["strokeDash"]["scale"]["range"] for encoding in encodings if "strokeDash" in encoding), None)


def test_there_is_a_panel_per_top_k_and_model_with_no_top_k_last() -> None:
    panels = rows_of(decode_plots.heat_maps(SWEEP))
    assert list(panels) == [
        "base, top-k 10", "SSD, top-k 10", "base, top-k 20", "SSD, top-k 20", "base, no top-k", "SSD, no top-k",
    ]  # fmt: skip
    assert [len(rows) for rows in panels.values()] == [12] * 6


def test_every_setting_is_drawn_once_and_the_chosen_and_training_settings_are_marked() -> None:
    panels = rows_of(decode_plots.heat_maps(SWEEP))
    assert sum(map(len, panels.values())) == len(SWEEP.grid)
    for model, name in (("base", "base"), ("ssd", "SSD")):
        own = [row for title, rows in panels.items() if title.startswith(name) for row in rows]
        chosen = next(cell.decoding for cell in SWEEP.grid if cell.model == model and cell.chosen)
        assert [row["decode"] for row in own if "chosen" in row["role"]] == [chosen]
        assert [row["decode"] for row in own if row["chosen"]] == [chosen]
        assert [row["decode"] for row in own if row["training"]] == ["T1.6-k20-p0.8"]


def test_a_training_decode_beside_the_grid_has_its_own_line() -> None:
    panels = rows_of(decode_plots.heat_maps(sweep_results(cells_of((0.7, 1.0), (20,), (0.8,)))))
    assert list(panels) == ["base, top-k 20", "SSD, top-k 20", "base, beside the table"]
    (beside,) = panels["base, beside the table"]
    assert (beside["setting"], beside["training"]) == ("T1.6-k20-p0.8, training decode", True)


def test_settings_that_differ_only_in_min_p_do_not_cover_each_other() -> None:
    plain = SamplingParams(temperature=1.0, top_k=20, top_p=0.8)
    cells = (plain, dataclasses.replace(plain, min_p=0.1), TRAIN)
    panels = rows_of(decode_plots.heat_maps(sweep_results(cells)))
    assert [len(rows) for rows in panels.values()] == [2, 2, 1, 1]
    assert all("minp0.1" in panels[f"{name}, beside the table"][0]["decode"] for name in ("base", "SSD"))


def test_all_heat_maps_share_one_color_scale() -> None:
    panels = decode_plots.heat_maps(SWEEP)
    scales = {
        json.dumps(layer["encoding"][channel]["condition"]["scale"])
        for plot in panels
        for layer in plot.spec["layer"]
        for channel in {"fill", "color"} & layer["encoding"].keys()
    }
    assert len(scales) == 2, "one scale of the cells and one of their numbers"
    low, high = decode_plots.value_range(SWEEP)
    for scale in map(json.loads, scales):
        assert scale["domain"] == [100 * low, 100 * high]
        assert [name.rpartition("-")[2] for name in scale["range"]] == [f"{level})" for level in range(HEAT_LEVELS)]
    scores = [row["score"] for rows in rows_of(panels).values() for row in rows]
    assert (min(scores), max(scores)) == pytest.approx((100 * low, 100 * high), abs=1e-4)


def test_equal_scores_have_a_color_scale() -> None:
    zero = sweep_results(cells_of((0.7,), (20,), (0.8,)), scale=0.0)
    (fill,) = {
        json.dumps(plot.spec["layer"][0]["encoding"]["fill"]["condition"]["scale"]["domain"])
        for plot in decode_plots.heat_maps(zero)
    }
    assert json.loads(fill) == [0.0, 1.0]


def test_points_share_axes_and_are_at_the_product_of_the_temperatures() -> None:
    plots = decode_plots.effective_plots(SWEEP)
    assert [plot.title for plot in plots] == ["top-k 10", "top-k 20", "no top-k"]
    points = [layer["encoding"] for plot in plots for layer in plot.spec["layer"] if "shape" in layer["encoding"]]
    axes = {json.dumps(encoding[axis]["scale"]) for encoding in points for axis in "xy"}
    assert len(axes) == 2
    rows = rows_of(plots)
    assert sum(map(len, rows.values())) == len(SWEEP.effective_temperature.points)
    assert sum(row["chosen"] for panel in rows.values() for row in panel) == 2
    at = {(row["model"], row["decode"]): row for row in rows["top-k 20"]}
    assert at["SSD", "T1.1-k20-p0.8"]["T_eff"] == pytest.approx(1.76)
    assert at["base", "T1.1-k20-p0.8"]["T_eff"] == pytest.approx(1.1)
    low, high = points[0]["x"]["scale"]["domain"]
    for panel in rows.values():
        for row in panel:
            assert low < row["x"] < high
            assert abs(row["x"] - row["T_eff"]) < 0.02 * (high - low)


@pytest.mark.parametrize(("count", "patterns"), [(1, [[1, 0]]), (3, [[1.5, 3.5], [7, 4], [1, 0]]), (5, None)])
def test_there_is_a_line_per_top_p_or_one_of_means_if_there_are_many(
    count: int, patterns: list[list[float]] | None
) -> None:
    top_ps = (0.5, 0.7, 0.8, 0.95, 1.0)[:count]
    sweep = sweep_results(cells_of(TEMPERATURES, (20,), top_ps))
    (plot,) = decode_plots.effective_plots(sweep)
    assert dashes(plot) == patterns
    assert ("5 values of top-p" in decode_plots.mean_note(sweep)) == (patterns is None)


def test_a_setting_that_was_not_measured_is_not_a_point() -> None:
    nan = float("nan")
    first, *others = SWEEP.effective_temperature.points
    sweep = with_points(dataclasses.replace(first, value=nan, low=nan, high=nan), *others)
    plots = decode_plots.effective_plots(sweep)
    assert sum(map(len, rows_of(plots).values())) == len(SWEEP.effective_temperature.points) - 1
    json.dumps([plot.spec for plot in plots], allow_nan=False)
    nothing = with_points()
    assert decode_plots.effective_plots(nothing) == []
    assert decode_plots.mean_note(nothing) == ""


def test_a_cell_that_was_not_measured_says_so() -> None:
    cell = dataclasses.replace(SWEEP.grid[0], pass_at_1=None)
    plots = decode_plots.heat_maps(dataclasses.replace(SWEEP, grid=(cell, *SWEEP.grid[1:])))
    rows = [row for rows in rows_of(plots).values() for row in rows if row["decode"] == cell.decoding]
    assert next((row["label"], row["role"]) for row in rows) == ("\N{EN DASH}", "not measured")
    assert any("not measured" in plot.text for plot in plots)


@settings(max_examples=8)
@given(
    st.lists(st.sampled_from([0.0, 0.6, 1.0, 1.3, 2.0]), min_size=1, max_size=6, unique=True),
    st.lists(st.sampled_from([-1, 10, 20]), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from([0.5, 0.7, 0.8, 0.95, 1.0]), min_size=1, max_size=5, unique=True),
    st.sampled_from([0.0, 1.0]),
)
def test_any_grid_is_drawn_completely(
    temperatures: list[float], top_ks: list[int], top_ps: list[float], scale: float
) -> None:
    cells = cells_of(temperatures, top_ks, top_ps)
    sweep = sweep_results(cells, scale=scale)
    heat, effective = decode_plots.heat_maps(sweep), decode_plots.effective_plots(sweep)
    assert sum(map(len, rows_of(heat).values())) == 2 * len(cells) + (sweep.beside_grid is not None)
    assert len(effective) == len(top_ks)
    json.dumps([plot.spec for plot in (*heat, *effective)], allow_nan=False)
