"""Tests for the plots of scores and training."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.evaluation.checkpoints import CheckpointScore, CheckpointScores
from megatron_ssd.grading.metrics import Estimate
from megatron_ssd.report import plots
from megatron_ssd.report.data import TrainingPoint, thin
from megatron_ssd.report.page import templates
from megatron_ssd.report.theme import DARK, HEAT_LEVELS, LIGHT, Scheme, contrast_ratio, heat_color, text_on
from tests.helpers.evaluated_run import evaluate
from tests.helpers.programs import function_problem
from tests.helpers.report_run import read_page, read_scores

TEXT_CONTRAST = 4.5
UNKNOWN = Estimate(value=math.nan, low=math.nan, high=math.nan)


def values(plot: plots.Plot) -> list[dict[str, Any]]:
    return list(plot.spec["data"]["values"])


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_colors_are_readable_on_page_and_panel(scheme: Scheme) -> None:
    for color, ground in itertools.product(
        (scheme.ink, scheme.muted, scheme.base, scheme.ssd), (scheme.page, scheme.panel)
    ):
        assert contrast_ratio(color, ground) >= TEXT_CONTRAST, (color, ground)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_numbers_are_readable_on_every_heat_color_and_lightness_is_monotonic(scheme: Scheme) -> None:
    colors = [heat_color(scheme, level / (HEAT_LEVELS - 1)) for level in range(HEAT_LEVELS)]
    assert all(contrast_ratio(text_on(color), color) >= TEXT_CONTRAST for color in colors)
    from_page = [contrast_ratio(color, scheme.page) for color in colors]
    assert from_page == sorted(from_page)
    assert (colors[0], colors[-1]) == (scheme.heat[0], scheme.heat[-1])
    assert all(f"--heat-{level}: {color};" in scheme.css_variables() for level, color in enumerate(colors))


def test_score_plots_have_every_score_of_the_headline(published: Path) -> None:
    headline = read_scores(published)["headline"]
    page = read_page(published)
    for score in headline:
        name = "SSD" if score["model"] == "ssd" else "base"
        assert f"{score['title']}, {name}: {100 * score['pass@1']['value']:.1f} (" in page


@pytest.mark.parametrize("points", [[], [(1, 0.5)], [(1, 0.0), (2, 0.0)], [(1, 3.0), (2, 1.0), (3, 2.0)]])
def test_curves_of_any_length_have_every_point(points: list[tuple[float, float]]) -> None:
    plot = plots.curve(points, title="Loss")
    assert [(row["iteration"], row["value"]) for row in values(plot)] == points
    assert plot.text == plot.spec["description"]
    assert ("nothing was logged" in plot.text) == (not points)


def test_the_plot_over_training_has_every_checkpoint_and_the_base_at_its_best() -> None:
    problems = [function_problem(f"p{number}") for number in range(8)]
    base = evaluate(problems)[0].score("base_best")
    scores = [CheckpointScore(iteration=iteration, model="ssd" if iteration else "base", selection=UNKNOWN,
                              report={1: UNKNOWN if iteration == 500 else Estimate(value=0.5, low=0.4, high=0.6)})
              for iteration in (0, 250, 500)]  # fmt: skip
    plot = plots.over_training(CheckpointScores(decoding="T1-k20-p0.8", scores=tuple(scores)), base, 1)
    rows = [row for layer in plot.spec["layer"] for row in layer["data"]["values"]]
    points = {row["iteration"]: (row["model"], row["value"]) for row in rows if "iteration" in row}
    assert points == {0: ("base", 50.0), 250: ("SSD", 50.0), 500: ("SSD", None)}
    for text in ("base at iteration 0: 50.0 (40.0 to 60.0)", "SSD at iteration 500: not measured", base.decoding):
        assert text in plot.text


@pytest.mark.parametrize("numbers", [[], [7], [0, 0, 0], list(range(1000))])
def test_a_histogram_counts_every_value_once(numbers: list[int]) -> None:
    plot = plots.histogram(numbers, title="Length", note="", unit="tokens")
    bins = values(plot)
    assert sum(each["count"] for each in bins) == len(numbers)
    assert all(one["to"] == other["from"] for one, other in itertools.pairwise(bins))


@pytest.mark.parametrize(
    ("estimates", "domain"),
    [
        ([], [0.0, 100.0]),
        ([UNKNOWN], [0.0, 100.0]),
        ([Estimate(value=0.0, low=0.0, high=0.0)], [0.0, 1.0]),
        ([Estimate(value=1.0, low=1.0, high=1.0)], [99.0, 101.0]),
        ([Estimate(value=0.5, low=-0.03, high=1.03)], [0.0, 100.0]),
        ([Estimate(value=0.5, low=0.25, high=0.75), UNKNOWN], [25.0, 75.0]),
    ],
)
def test_axes_in_percent_contain_every_interval(estimates: list[Estimate], domain: list[float]) -> None:
    assert plots.percent_domain(estimates) == domain


def test_a_missing_score_is_null_and_described_in_words() -> None:
    assert plots.in_percent(UNKNOWN) == {"value": None, "low": None, "high": None}
    assert plots.measured_text(UNKNOWN) == "not measured"
    assert plots.measured_text(Estimate(value=0.345, low=0.3081, high=0.3822)) == "34.5 (30.8 to 38.2)"


@pytest.mark.parametrize(("number", "size"), [(0, 1), (1, 1), (800, 1), (801, 2), (100_000, 125)])
def test_long_curves_are_reduced_to_means_and_keep_their_end(number: int, size: int) -> None:
    points = [
        TrainingPoint(iteration=i, loss=float(i), learning_rate=0.0, grad_norm=1.0, tokens_per_second=5.0)
        for i in range(1, number + 1)
    ]
    thinned, found = thin(points)
    assert found == size
    assert len(thinned) <= 800
    assert [point.iteration for point in thinned[-1:]] == [number][: len(thinned)]
    assert all(point.loss == pytest.approx(point.iteration - (size - 1) / 2) for point in thinned[:-1])


def test_markup_in_a_name_is_escaped() -> None:
    hostile = "</script><img src=x onerror=alert(1)>"
    plot = plots.histogram([1, 2], title=hostile, note=hostile, unit=hostile)
    markup = str(templates().get_template("figure.html.jinja").module.figure(plot))  # type: ignore[attr-defined]
    assert "<img" not in markup
    assert markup.count("</script>") == 1
    spec = markup.partition('"application/json">')[2].partition("</script>")[0]
    assert json.loads(spec) == plot.spec
