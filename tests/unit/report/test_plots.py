"""Pictures: well-formed SVG, marks where the numbers are, colours that can be read."""

from __future__ import annotations

import itertools
import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ssd.report import plots, svg
from megatron_ssd.report.data import TrainingPoint
from megatron_ssd.report.theme import DARK, LIGHT, Scheme, contrast_ratio, heat_color, text_on

TEXT_CONTRAST = 4.5
FINITE = st.floats(min_value=-1e9, max_value=1e9, allow_subnormal=False)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_colours_read_on_page_and_panel(scheme: Scheme) -> None:
    for color, ground in itertools.product(
        (scheme.ink, scheme.muted, scheme.base, scheme.ssd), (scheme.page, scheme.panel)
    ):
        assert contrast_ratio(color, ground) >= TEXT_CONTRAST, (color, ground)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_numbers_read_on_every_heat_colour_and_lightness_runs_one_way(scheme: Scheme) -> None:
    colors = [heat_color(scheme, step / 100) for step in range(101)]
    assert all(contrast_ratio(text_on(color), color) >= TEXT_CONTRAST for color in colors)
    from_page = [contrast_ratio(color, scheme.page) for color in colors]
    assert from_page == sorted(from_page)


def test_heat_colours_are_held_at_the_ends() -> None:
    assert heat_color(LIGHT, -1.0) == LIGHT.heat[0]
    assert heat_color(LIGHT, 2.0) == LIGHT.heat[-1]


@pytest.mark.parametrize("points", [[], [(1, 0.5)], [(1, 0.0), (2, 0.0)], [(1, 3.0), (2, 1.0), (3, 2.0)]])
def test_curves_of_any_length_stay_in_their_box(points: list[tuple[float, float]]) -> None:
    drawing = ElementTree.fromstring(plots.curve(points, label="loss"))
    steps = next(path for path in drawing.iter("path")).get("d", "").replace("M", "").replace("L", "").split()
    xs, ys = [float(v) for v in steps[::2]], [float(v) for v in steps[1::2]]
    assert all(0 <= x <= svg.WIDTH for x in xs)
    assert all(0 <= y <= 222 for y in ys)


@pytest.mark.parametrize("values", [[], [7], [0, 0, 0], list(range(1000))])
def test_histogram_counts_every_value_once(values: list[int]) -> None:
    drawing = ElementTree.fromstring(plots.histogram(values, label="lengths", unit="tokens"))
    counts = [int((title.text or "").rsplit(" ", 1)[1]) for title in drawing.iter("title")]
    assert sum(counts) == len(values)


def test_markup_in_data_stays_text() -> None:
    drawing = svg.drawing(svg.text(0, 0, "<script>&"), label='a "quoted" <label>', height=10)
    assert "<script>" not in drawing
    parsed = ElementTree.fromstring(drawing)
    assert parsed.get("aria-label") == 'a "quoted" <label>'
    assert next(parsed.iter("text")).text == "<script>&"


@given(st.lists(FINITE, min_size=1, max_size=20))
def test_round_scales_hold_their_values_and_have_ticks_inside(values: list[float]) -> None:
    scale = svg.round_scale(values, 0, 100)
    slack = 1e-6 * max(map(abs, values)) + 1e-9
    assert scale.low <= min(values) + slack
    assert scale.high >= max(values) - slack
    assert all(scale.low - slack <= tick <= scale.high + slack for tick in scale.ticks())
    assert all(math.isfinite(scale(value)) for value in values)


def test_scales_of_per_cent_never_leave_0_to_100() -> None:
    scale = svg.round_scale([-3.0, 103.0], 0, 400, floor=0.0, ceiling=100.0)
    assert (scale.low, scale.high) == (0.0, 100.0)


@pytest.mark.parametrize(("number", "size"), [(0, 1), (1, 1), (800, 1), (801, 2), (100_000, 125)])
def test_long_curves_are_thinned_to_means_and_keep_their_end(number: int, size: int) -> None:
    points = [
        TrainingPoint(iteration=i, loss=float(i), learning_rate=0.0, grad_norm=1.0, tokens_per_second=5.0)
        for i in range(1, number + 1)
    ]
    thinned, found = plots.thin(points)
    assert found == size
    assert len(thinned) <= 800
    assert [point.iteration for point in thinned[-1:]] == [number][: len(thinned)]
    assert all(point.loss == pytest.approx(point.iteration - (size - 1) / 2) for point in thinned[:-1])
