"""Builds the report's plots with Altair.

The plots of decode settings are in ``decode_plots.py``. A page draws a specification with ``templates/charts.js``.
Colors are the page's CSS variables: one drawing serves light pages, dark pages and paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np

from megatron_ssd.evaluation.checkpoints import CheckpointScores
from megatron_ssd.evaluation.results import Score
from megatron_ssd.evaluation.tables import percent
from megatron_ssd.formatting import NOT_MEASURED, compact, counted
from megatron_ssd.grading.metrics import Estimate
from megatron_ssd.report.theme import MODEL_TITLES

_HISTOGRAM_BINS = 30
_HEADER, _LINE = 26, 20  # pixels: height of a group's name, and of one interval
_NUMBERS = 52  # pixels for the numbers to the right of the intervals


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot of the page. ``text`` says what it shows, for screen readers and for pages without scripts."""

    title: str
    spec: dict[str, Any]
    text: str
    note: str = ""


@alt.theme.register("report", enable=True)
def theme() -> alt.theme.ThemeConfig:
    """The style of every plot."""
    muted = {f"{part}Color": "var(--muted)" for part in ("label", "title")}
    title = {"titleFontWeight": "normal"}
    config = {
        "background": None, "font": "system-ui, sans-serif", "padding": 2, "view": {"stroke": None},
        "axis": {**muted, **title, "gridColor": "var(--rule)", "domain": False, "ticks": False,
                 "labelFontSize": 12, "labelPadding": 6, "titleFontSize": 12, "titlePadding": 8},
        "legend": {**muted, **title, "labelColor": "var(--ink)", "labelFontSize": 13, "titleFontSize": 13,
                   "titleOrient": "left", "orient": "top", "offset": 8, "columnPadding": 18, "symbolSize": 90,
                   "symbolStrokeWidth": 1.6},
        "text": {"color": "var(--ink)", "fontSize": 12.5},
        "line": {"strokeWidth": 1.6, "strokeJoin": "round", "strokeCap": "round"},
    }  # fmt: skip
    return alt.theme.ThemeConfig(config=config)


def plot(chart: alt.Chart | alt.LayerChart, title: str, *, height: float, text: str, note: str = "") -> Plot:
    """``chart`` as a plot that is as wide as its figure on the page."""
    spec = chart.properties(width="container", height=height, description=text).to_dict()
    return Plot(title=title, spec=spec, text=text, note=note)


def chart_of(rows: list[dict[str, Any]]) -> alt.Chart:
    """A chart of ``rows`` without a mark."""
    return alt.Chart(alt.Data(values=rows))


def score_intervals(scores: Sequence[Score], k: int) -> Plot:
    """pass@k of each row of the headline table with its interval."""
    return _intervals(k, "setting", [(score.title, [(score, score.overall[k])]) for score in scores])


def by_difficulty(base: Score, ssd: Score, k: int) -> Plot:
    """pass@k of base and SSD on each difficulty with intervals."""
    groups = []
    for name in base.by_difficulty:
        count = base.problems_by_difficulty.get(name)
        title = name if count is None else f"{name} ({counted(count, 'problem')})"
        groups.append((title, [(score, score.by_difficulty[name][k]) for score in (base, ssd)]))
    return _intervals(k, "difficulty", groups)


def curve(points: Sequence[tuple[float, float]], *, title: str, note: str = "", from_zero: bool = False) -> Plot:
    """A line over training iterations; ``from_zero`` keeps zero on the axis."""
    base = chart_of([{"iteration": x, "value": float(f"{y:.6g}")} for x, y in points]).encode(
        x=alt.X("iteration:Q", scale=alt.Scale(zero=False, nice=False), axis=alt.Axis(grid=False)),
        y=alt.Y("value:Q", scale=alt.Scale(zero=from_zero), title=None, axis=alt.Axis(tickCount=4)),
    )
    hover = alt.selection_point(name="hover", on="pointerover", nearest=True, clear="pointerout")
    nearest = base.mark_point(filled=True, color="var(--ssd)", size=70).encode(
        opacity=alt.condition(hover, alt.value(1), alt.value(0), empty=False),
        tooltip=[alt.Tooltip("iteration:Q", format=","), alt.Tooltip("value:Q", title=title.lower(), format=",.4~g")],
    )
    text = "nothing was logged"
    if points:
        (first, begin), (last, end) = points[0], points[-1]
        text = f"{title}: {compact(begin)} at iteration {first:,}, {compact(end)} at iteration {last:,}"
    chart = alt.layer(base.mark_line(color="var(--ink)"), nearest.add_params(hover))
    return plot(chart, title, height=180, text=text, note=note)


def over_training(found: CheckpointScores, base: Score, k: int) -> Plot:
    """pass@k of each checkpoint over its iteration, with intervals; a line with a band is the base at its best."""
    best = base.overall[k]
    rows = [
        {"iteration": one.iteration, "model": MODEL_TITLES[one.model], "score": measured_text(one.report[k]),
         **in_percent(one.report[k])}
        for one in found.scores
    ]  # fmt: skip
    scale = alt.Scale(domain=percent_domain([best, *(one.report[k] for one in found.scores)]), nice=4, zero=False)
    points = chart_of(rows).encode(
        x=alt.X("iteration:Q", scale=alt.Scale(nice=False, padding=12), axis=alt.Axis(grid=False, tickCount=6)),
        y=alt.Y("value:Q", title=None, scale=scale, axis=alt.Axis(tickCount=4)),
        color=model_color(),
        tooltip=["model:N", alt.Tooltip("iteration:Q", format=","), alt.Tooltip("score:N", title=f"pass@{k}, %")],
    )
    bars = points.mark_rule(strokeWidth=1.25, strokeOpacity=0.6).encode(y="low:Q", y2="high:Q")
    level = chart_of([in_percent(best)]).encode(
        y=alt.Y("value:Q", title=None, scale=scale),
        tooltip=[alt.Tooltip("value:Q", title="base at its best, %", format=".1f")],
    )
    band = level.mark_rect(color="var(--base)", opacity=0.12).encode(y=alt.Y("low:Q", title=None), y2="high:Q")
    line = level.mark_rule(color="var(--base)", strokeDash=[7, 4], strokeWidth=1.5)
    chart = alt.layer(band, line, points.mark_line(), bars, model_points(points, 65))
    values = [f"{row['model']} at iteration {row['iteration']:,}: {row['score']}" for row in rows]
    text = (
        f"pass@{k} in percent over training, at {found.decoding}. {'; '.join(values)}. "
        f"The base at its best, {base.decoding}: {measured_text(best)}."
    )
    return plot(chart, f"pass@{k} over training", height=210, text=text, note="percent; dashed: the base at its best")


def histogram(values: Sequence[int], *, title: str, note: str, unit: str) -> Plot:
    """The distribution of ``values`` over equal bins."""
    low, high = (min(values), max(values) + 1) if values else (0, 1)
    counts, edges = np.histogram(values, bins=min(_HISTOGRAM_BINS, high - low), range=(low, high))
    rows = [
        {"from": begin, "to": end, "bin": f"{begin:.0f} to {end:.0f}", "count": count}
        for begin, end, count in zip(edges.tolist(), edges[1:].tolist(), counts.tolist(), strict=False)
    ]
    text = f"{title}: none"
    if values:
        text = f"{title}: from {low:,} to {high - 1:,} {unit}, median {sorted(values)[len(values) // 2]:,}"
    chart = chart_of(rows).mark_bar(color="var(--base)", binSpacing=1)
    chart = chart.encode(
        x=alt.X("from:Q", scale=alt.Scale(zero=False, nice=False), title=unit, axis=alt.Axis(grid=False)),
        x2="to:Q",
        y=alt.Y("count:Q", title=None, axis=alt.Axis(tickCount=4, format=",~s")),
        y2=alt.datum(0),
        tooltip=[alt.Tooltip("bin:N", title=unit), alt.Tooltip("count:Q", format=",")],
    )
    return plot(chart, title, height=180, text=text, note=note)


def measured_text(estimate: Estimate) -> str:
    """``34.5 (30.8 to 38.2)`` in percent, or that it was not measured."""
    shown = percent(estimate)
    return f"{shown.value} ({shown.interval})" if shown.known else NOT_MEASURED


def in_percent(estimate: Estimate) -> dict[str, float | None]:
    """Value and interval in percent; null if not measured."""
    bounds = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: round(100 * bound, 4) if estimate.is_known else None for name, bound in bounds.items()}


def percent_domain(estimates: Iterable[Estimate]) -> list[float]:
    """The ends of an axis in percent on which every interval fits."""
    known = [100 * bound for estimate in estimates if estimate.is_known for bound in (estimate.low, estimate.high)]
    low, high = (max(min(known), 0.0), min(max(known), 100.0)) if known else (0.0, 100.0)
    return [low, high] if high > low else [max(low - 1, 0.0), low + 1]


def model_color() -> alt.Color:
    """The color of each model."""
    colors = [f"var(--{model})" for model in MODEL_TITLES]
    return alt.Color("model:N", title=None, scale=alt.Scale(domain=list(MODEL_TITLES.values()), range=colors))


def model_points(chart: alt.Chart, size: int) -> alt.Chart:
    """Points whose shape shows the model; a diamond needs a larger area to look as large as a disc."""
    shapes = alt.Scale(domain=list(MODEL_TITLES.values()), range=["circle", "diamond"])
    return chart.mark_point(filled=True).encode(
        shape=alt.Shape("model:N", title=None, scale=shapes),
        size=alt.condition(alt.datum.model == MODEL_TITLES["ssd"], alt.value(1.5 * size), alt.value(size)),
    )


def legend_choice(*fields: str) -> tuple[list[alt.Parameter], Any]:
    """A parameter for each field that a click on its legend sets, and the opacity that dims what is not chosen."""
    params = [alt.selection_point(name=f"only_{name}", fields=[name], bind="legend", toggle="true") for name in fields]
    return params, alt.when(*params).then(alt.value(1)).otherwise(alt.value(0.12))


def _intervals(k: int, kind: str, groups: Sequence[tuple[str, Sequence[tuple[Score, Estimate]]]]) -> Plot:
    """Groups below each other. Under its name, each score has a line with its mark, interval and number."""
    entries = [(name, line, *entry) for name, members in groups for line, entry in enumerate(members)]
    rows = []
    for name, line, score, estimate in entries:
        shown, model = percent(estimate), MODEL_TITLES[score.model]
        number = shown.value if shown.known else NOT_MEASURED
        row = {"group": name, "line": line, "model": model, "decode": score.decoding, "number": number}
        rows.append({**row, "interval": shown.interval, **in_percent(estimate)})
    step = _HEADER + _LINE * max((len(members) for _, members in groups), default=1)
    gap = _HEADER / step  # above each group, for its name
    scale = alt.Scale(
        domain=percent_domain(estimate for *_, estimate in entries),
        nice=5, zero=False, rangeMax=alt.ExprRef(f"width - {_NUMBERS}"),
    )  # fmt: skip
    names = alt.Axis(
        labelAlign="left", labelPadding=0, labelOffset=-step / 2, labelLimit=0, maxExtent=0,
        labelColor="var(--ink)", labelFontSize=12.5, labelFontWeight=500,
    )  # fmt: skip
    bands = alt.Scale(paddingInner=gap, paddingOuter=gap / 2, align=1)
    (only_model,), opacity = legend_choice("model")
    base = chart_of(rows).encode(
        x=alt.X("value:Q", title=None, scale=scale, axis=alt.Axis(tickCount=5)),
        y=alt.Y("group:N", title=None, sort=None, scale=bands, axis=names),
        yOffset=alt.YOffset("line:O", scale=alt.Scale(padding=0)),
        color=model_color(),
        opacity=opacity,
        tooltip=[alt.Tooltip("group:N", title=kind), "model:N", "decode:N",
                 alt.Tooltip("number:N", title=f"pass@{k}, %"), "interval:N"],
    )  # fmt: skip
    bars = base.mark_rule(strokeWidth=2.5, strokeCap="round").encode(x="low:Q", x2="high:Q")
    numbers = base.mark_text(align="right", fontWeight=600, fontSize=13.5).encode(x=alt.value("width"), text="number:N")
    chart = alt.layer(bars.add_params(only_model), model_points(base, 100), numbers)
    values = [f"{name}, {MODEL_TITLES[score.model]}: {measured_text(estimate)}" for name, _, score, estimate in entries]
    text = f"pass@{k} in percent. {'; '.join(values)}."
    return plot(chart, f"pass@{k}", height=step * len(groups), text=text, note="percent")
