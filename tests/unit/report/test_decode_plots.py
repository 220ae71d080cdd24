"""Pictures of the decode settings: a place for every setting, marks on the right ones, one scale for all panels."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.evaluation.results import EffectivePoint, EvaluationResults
from megatron_ssd.report import decode_plots, svg
from tests.helpers.sweep_summary import TRAIN, cells_of, sweep_results

TEMPERATURES, TOP_KS, TOP_PS = (0.7, 0.9, 1.1, 1.6), (20, 10, -1), (0.8, 0.95, 1.0)


def with_points(results: EvaluationResults, *points: EffectivePoint) -> EvaluationResults:
    effective = dataclasses.replace(results.effective_temperature, points=points)
    return dataclasses.replace(results, effective_temperature=effective)


SWEEP = sweep_results(cells_of(TEMPERATURES, TOP_KS, TOP_PS))


def parse(panels: Sequence[tuple[str, str]]) -> dict[str, ElementTree.Element]:
    return {title: ElementTree.fromstring(drawing) for title, drawing in panels}


def of_class(drawing: ElementTree.Element, tag: str, name: str) -> list[ElementTree.Element]:
    return [found for found in drawing.iter(tag) if name in str(found.get("class")).split()]


def titles(drawing: ElementTree.Element) -> list[str]:
    return [str(title.text) for title in drawing.iter("title")]


def test_a_panel_for_each_top_k_and_model_with_the_widest_truncation_last() -> None:
    panels = parse(decode_plots.heat_maps(SWEEP))
    assert list(panels) == [
        "Base, top-k 10", "SSD, top-k 10", "Base, top-k 20", "SSD, top-k 20", "Base, no top-k", "SSD, no top-k",
    ]  # fmt: skip
    assert [len(of_class(panel, "rect", "heat")) for panel in panels.values()] == [12] * 6


def test_every_setting_is_drawn_once_and_the_chosen_and_the_training_one_are_marked() -> None:
    panels = parse(decode_plots.heat_maps(SWEEP))
    drawn = [title for panel in panels.values() for title in titles(panel)]
    assert len(drawn) == len(SWEEP.grid)
    for model, name in (("base", "Base"), ("ssd", "SSD")):
        own = [panel for title, panel in panels.items() if title.startswith(name)]
        assert sum(len(of_class(panel, "rect", "chosen")) for panel in own) == 1
        chosen = next(cell.decoding for cell in SWEEP.grid if cell.model == model and cell.chosen)
        assert [t.split(":")[0] for panel in own for t in titles(panel) if "(chosen)" in t] == [chosen]
        marked = panels[f"{name}, top-k 20"]
        assert len(of_class(marked, "polygon", "heat-corner")) == 1
        assert [title.split(":")[0] for title in titles(marked) if "(training decode)" in title] == ["T1.6-k20-p0.8"]


def test_a_training_decode_beside_the_grid_has_a_line_of_its_own() -> None:
    panels = parse(decode_plots.heat_maps(sweep_results(cells_of((0.7, 1.0), (20,), (0.8,)))))
    assert list(panels) == ["Base, top-k 20", "SSD, top-k 20", "Base, beside the table"]
    beside = panels["Base, beside the table"]
    assert next(str(found.text) for found in beside.iter("text")) == "T1.6-k20-p0.8, training decode"
    assert len(of_class(beside, "polygon", "heat-corner")) == 1


def test_settings_that_differ_in_min_p_alone_do_not_cover_each_other() -> None:
    plain = SamplingParams(temperature=1.0, top_k=20, top_p=0.8)
    cells = (plain, dataclasses.replace(plain, min_p=0.1), TRAIN)
    panels = parse(decode_plots.heat_maps(sweep_results(cells)))
    assert [len(of_class(panel, "rect", "heat")) for panel in panels.values()] == [2, 2, 1, 1]
    assert all("minp0.1" in titles(panels[f"{name}, beside the table"])[0] for name in ("Base", "SSD"))


def test_all_heat_maps_colour_a_value_alike() -> None:
    styles: dict[str, set[str]] = {}
    for panel in parse(decode_plots.heat_maps(SWEEP)).values():
        for box, number in zip(of_class(panel, "rect", "heat"), of_class(panel, "text", "heat-text"), strict=True):
            styles.setdefault(str(number.text), set()).add(str(box.get("style")))
    low, high = decode_plots.value_range(SWEEP)
    ends = {f"{share * 100:.1f}" for share in (low, high)}
    assert ends <= styles.keys()
    exact = {cell.pass_at_1: f"{cell.pass_at_1 * 100:.1f}" for cell in SWEEP.grid}
    for text in ends:  # a rounded number may stand for several shares, an end for one colour
        assert len(styles[text]) <= sum(written == text for written in exact.values())


def test_curves_of_t_eff_share_their_axes_and_stand_where_the_product_says() -> None:
    panels = parse(decode_plots.effective_plots(SWEEP))
    assert list(panels) == ["Top-k 10", "Top-k 20", "No top-k"]
    ticks = {tuple(str(t.text) for t in of_class(panel, "text", "tick")) for panel in panels.values()}
    assert len(ticks) == 1
    panel = panels["Top-k 20"]
    assert len(of_class(panel, "path", "trend")) == 2 * len(TOP_PS)
    assert len(of_class(panel, "line", "thin")) == 2 * len(TOP_PS) * len(TEMPERATURES)
    shown = [title for title in titles(panel) if title.startswith("SSD, T1.1-k20-p0.8, T_eff 1.76")]
    assert len(shown) == 1
    rings = sum(len(of_class(panel, "circle", "ring")) for panel in panels.values())
    assert rings == 2
    base = _places(panel, "circle", "fill-base", lambda disc: float(str(disc.get("cx"))))
    ssd = _places(panel, "polygon", "fill-ssd", lambda diamond: float(str(diamond.get("points")).split(",")[0]))
    one = [base[f"base, T{t:g}-k20-p0.8"] for t in TEMPERATURES]
    assert one == sorted(one)
    unit = (one[-1] - one[0]) / (1.6 - 0.7)
    assert ssd["SSD, T0.7-k20-p0.8"] - base["base, T1.1-k20-p0.8"] == pytest.approx(unit * (0.7 * 1.6 - 1.1), abs=0.2)


def _places(
    panel: ElementTree.Element, tag: str, name: str, place: Callable[[ElementTree.Element], float]
) -> dict[str, float]:
    """Model and setting -> where its mark stands."""
    return {titles(found)[0].split(", T_eff")[0]: place(found) for found in of_class(panel, tag, name)}


@pytest.mark.parametrize(("count", "patterns"), [(1, ["none"]), (2, ["7 4", "none"]), (3, ["1.5 3.5", "7 4", "none"])])
def test_curves_have_the_line_of_their_legend(count: int, patterns: list[str]) -> None:
    sweep = sweep_results(cells_of(TEMPERATURES, (20,), TOP_PS[:count]))
    panel = next(iter(parse(decode_plots.effective_plots(sweep)).values()))
    drawn = [path.get("stroke-dasharray") for path in of_class(panel, "path", "trend")]
    assert drawn == patterns * 2
    legend = decode_plots.curve_legend(sweep)
    assert [words for _, words in legend] == [f"top-p {p:g}" for p in TOP_PS[:count]]
    samples = [ElementTree.fromstring(sample).find("line") for sample, _ in legend]
    assert [sample.get("stroke-dasharray") for sample in samples if sample is not None] == patterns


def test_many_top_ps_are_points_and_their_mean() -> None:
    sweep = sweep_results(cells_of(TEMPERATURES, (20,), (0.5, 0.7, 0.8, 0.95, 1.0)))
    panel = next(iter(parse(decode_plots.effective_plots(sweep)).values()))
    assert len(of_class(panel, "path", "trend")) == 2
    assert len(of_class(panel, "line", "thin")) == 40
    assert [words for _, words in decode_plots.curve_legend(sweep)] == [
        "mean over the 5 top-p; points are single settings"
    ]


def test_what_was_not_measured_is_no_point() -> None:
    first, *others = SWEEP.effective_temperature.points
    unknown = dataclasses.replace(first, value=math.nan, low=math.nan, high=math.nan)
    sweep = with_points(SWEEP, unknown, *others)
    drawn = [title for panel in parse(decode_plots.effective_plots(sweep)).values() for title in titles(panel)]
    assert len(drawn) == len(others)
    assert "nan" not in "".join(drawing for _, drawing in decode_plots.effective_plots(sweep))
    assert decode_plots.effective_plots(with_points(SWEEP)) == []


def test_a_name_with_markup_stays_text() -> None:
    hostile = "<script>&\"'"
    cell = dataclasses.replace(SWEEP.grid[0], decoding=hostile, min_p=0.1)
    point = dataclasses.replace(SWEEP.effective_temperature.points[0], decoding=hostile)
    sweep = with_points(dataclasses.replace(SWEEP, grid=(cell, *SWEEP.grid[1:])), point)
    drawings = [*decode_plots.heat_maps(sweep), *decode_plots.effective_plots(sweep)]
    assert not any("<script>" in drawing for _, drawing in drawings)
    assert any(hostile in title for panel in parse(drawings).values() for title in titles(panel))


@settings(max_examples=30)
@given(
    st.lists(st.sampled_from([0.0, 0.6, 1.0, 1.3, 2.0]), min_size=1, max_size=6, unique=True),
    st.lists(st.sampled_from([-1, 10, 20]), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from([0.5, 0.7, 0.8, 0.95, 1.0]), min_size=1, max_size=5, unique=True),
    st.sampled_from([0.0, 1.0]),
)
def test_any_grid_is_drawn_whole_and_inside_its_boxes(
    temperatures: list[float], top_ks: list[int], top_ps: list[float], scale: float
) -> None:
    cells = cells_of(temperatures, top_ks, top_ps)
    sweep = sweep_results(cells, scale=scale)
    heat, effective = parse(decode_plots.heat_maps(sweep)), parse(decode_plots.effective_plots(sweep))
    boxes = sum(len(of_class(panel, "rect", "heat")) for panel in heat.values())
    assert boxes == 2 * len(cells) + (sweep.beside_grid is not None)
    assert len(effective) == len(top_ks)
    for drawing in itertools.chain(heat.values(), effective.values()):
        height = float(str(drawing.get("height")))
        for found in drawing.iter():
            for key in ("x", "x1", "x2", "cx"):
                assert 0 <= float(found.get(key, 0)) <= svg.WIDTH
            for key in ("y", "y1", "y2", "cy"):
                assert 0 <= float(found.get(key, 0)) <= height
