"""Vega-Lite specifications of the report's plots: scores with intervals, training curves and response lengths.

The plots of decode settings are in ``decode_plots.py``. A page draws a specification with ``templates/charts.js``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from megatron_ssd.evaluation.results import ModelName, Score
from megatron_ssd.grading.metrics import Estimate
from megatron_ssd.report.data import TrainingPoint
from megatron_ssd.report.formatting import compact, percent
from megatron_ssd.text_table import NOT_MEASURED, counted

MODEL_TITLES: dict[ModelName, str] = {"base": "base", "ssd": "SSD"}
MOST_POINTS = 800  # of a curve; a longer one is thinned to means

_HISTOGRAM_BINS = 30
_HEADER, _LINE = 26, 20  # pixels that a group's name and one interval take
_VALUES = 52  # pixels right of the intervals, for the numbers


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot of the page. ``text`` says what it shows, for screen readers and for pages without scripts."""

    title: str
    spec: dict[str, Any]
    text: str
    note: str = ""


def plot(title: str, *, text: str, note: str = "", **view: Any) -> Plot:
    """A plot as wide as its figure; ``view`` are the other properties of a Vega-Lite view."""
    return Plot(title=title, spec={"width": "container", "description": text, **view}, text=text, note=note)


def score_intervals(scores: Sequence[Score], k: int) -> Plot:
    """pass@k of each headline row with its interval."""
    return _intervals(k, [(score.title, [(score, score.overall[k])]) for score in scores])


def by_difficulty(base: Score, ssd: Score, k: int) -> Plot:
    """pass@k of base and SSD on each difficulty with intervals."""
    groups = []
    for name in base.by_difficulty:
        count = base.problems_by_difficulty.get(name)
        title = name if count is None else f"{name} ({counted(count, 'problem')})"
        groups.append((title, [(score, score.by_difficulty[name][k]) for score in (base, ssd)]))
    return _intervals(k, groups)


def curve(
    points: Sequence[tuple[float, float]], *, title: str, note: str = "", from_zero: bool = False
) -> Plot:  # fmt: skip
    """A line over training iterations; ``from_zero`` keeps zero on the axis."""
    name = title.lower()
    rows = [{"iteration": x, name: float(f"{y:.6g}")} for x, y in points]
    x = {"field": "iteration", "type": "quantitative", "scale": {"zero": False, "nice": False}, "axis": {"grid": False}}
    y = {"field": name, "type": "quantitative", "scale": {"zero": from_zero}, "title": None, "axis": {"tickCount": 4}}
    hover = {"name": "hover", "select": {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"}}
    text = "nothing was logged"
    if points:
        (first, begin), (last, end) = points[0], points[-1]
        text = f"{title}: {compact(begin)} at iteration {first:,}, {compact(end)} at iteration {last:,}"
    return plot(
        title,
        text=text,
        note=note,
        height=180,
        data={"values": rows},
        encoding={"x": x, "y": y},
        layer=[
            {"mark": {"type": "line", "color": "var(--ink)"}},
            {
                "mark": {"type": "point", "filled": True, "color": "var(--ssd)", "size": 70},
                "params": [hover],
                "encoding": {
                    "opacity": {"condition": {"param": "hover", "empty": False, "value": 1}, "value": 0},
                    "tooltip": [
                        {"field": "iteration", "type": "quantitative", "format": ","},
                        {"field": name, "type": "quantitative", "format": ",.4~g"},
                    ],
                },
            },
        ],
    )


def thin(points: Sequence[TrainingPoint], limit: int = MOST_POINTS) -> tuple[list[TrainingPoint], int]:
    """At most ``limit`` points, each the mean of as many consecutive ones, and how many those are."""
    size = max(1, math.ceil(len(points) / limit))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        TrainingPoint(
            iteration=group[-1].iteration,
            loss=fmean(p.loss for p in group),
            learning_rate=fmean(p.learning_rate for p in group),
            grad_norm=fmean(p.grad_norm for p in group),
            tokens_per_second=fmean(p.tokens_per_second for p in group),
        )
        for group in groups
    ], size


def histogram(values: Sequence[int], *, title: str, note: str, unit: str) -> Plot:
    """How ``values`` are distributed, over equal bins."""
    low, high = (min(values), max(values) + 1) if values else (0, 1)
    bins = max(1, min(_HISTOGRAM_BINS, high - low))
    counts = [0] * bins
    for value in values:
        counts[(value - low) * bins // (high - low)] += 1
    edges = [low + (high - low) * index / bins for index in range(bins + 1)]
    rows = [
        {"from": begin, "to": end, unit: f"{begin:.0f} to {end:.0f}", "count": count}
        for begin, end, count in zip(edges, edges[1:], counts, strict=False)
    ]
    text = f"{title}: none"
    if values:
        ordered = sorted(values)
        text = f"{title}: from {low:,} to {ordered[-1]:,} {unit}, median {ordered[len(ordered) // 2]:,}"
    scale = {"zero": False, "nice": False}
    return plot(
        title,
        text=text,
        note=note,
        height=180,
        data={"values": rows},
        mark={"type": "bar", "color": "var(--base)", "binSpacing": 1},
        encoding={
            "x": {"field": "from", "type": "quantitative", "scale": scale, "title": unit, "axis": {"grid": False}},
            "x2": {"field": "to"},
            "y": {"field": "count", "type": "quantitative", "title": None, "axis": {"tickCount": 4, "format": ",~s"}},
            "y2": {"datum": 0},
            "tooltip": [{"field": unit}, {"field": "count", "type": "quantitative", "format": ","}],
        },
    )


def measured_text(estimate: Estimate) -> str:
    """``34.5 (30.8 to 38.2)`` in percent, or that it was not measured."""
    shown = percent(estimate)
    return f"{shown.value} ({shown.interval})" if shown.known else NOT_MEASURED


def in_percent(estimate: Estimate) -> dict[str, float | None]:
    """Value and interval in percent; null if not measured."""
    bounds = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: round(100 * bound, 4) if estimate.is_known else None for name, bound in bounds.items()}


def percent_domain(estimates: Iterable[Estimate]) -> list[float]:
    """The ends of an axis in percent that holds every interval."""
    known = [100 * bound for estimate in estimates if estimate.is_known for bound in (estimate.low, estimate.high)]
    low, high = (max(min(known), 0.0), min(max(known), 100.0)) if known else (0.0, 100.0)
    return [low, high] if high > low else [max(low - 1, 0.0), low + 1]


def model_scale(channel: str) -> dict[str, Any]:
    """Encoding of the model as ``color`` or ``shape``."""
    marks = {"color": [f"var(--{model})" for model in MODEL_TITLES], "shape": ["circle", "diamond"]}
    scale = {"domain": list(MODEL_TITLES.values()), "range": marks[channel]}
    return {"field": "model", "type": "nominal", "scale": scale, "legend": {"title": None}}


def model_size(base: int) -> dict[str, Any]:
    """Encoding of a mark's area: a diamond needs more of it to look as large as a disc."""
    return {"condition": {"test": "datum.model === 'SSD'", "value": 1.5 * base}, "value": base}


def legend_choice(*fields: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Parameters that a click on a legend sets, one for each field, and the opacity that dims what is not chosen."""
    params = [
        {"name": f"only_{field}", "select": {"type": "point", "fields": [field], "toggle": "true"}, "bind": "legend"}
        for field in fields
    ]
    chosen = {"and": [{"param": param["name"]} for param in params]}
    return params, {"condition": {"test": chosen, "value": 1}, "value": 0.12}


def _intervals(k: int, groups: Sequence[tuple[str, Sequence[tuple[Score, Estimate]]]]) -> Plot:
    """Groups under each other: the name, then a line for each score with mark, interval and number."""
    headers: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    said = []
    y = 0
    for name, members in groups:
        headers.append({"name": name, "y": y + 13})
        y += _HEADER
        for score, estimate in members:
            shown = percent(estimate)
            rows.append(
                {
                    "y": y + _LINE / 2,
                    "model": MODEL_TITLES[score.model],
                    "of": name,
                    "decode": score.decoding,
                    "number": shown.value if shown.known else NOT_MEASURED,
                    "interval": shown.interval,
                    **in_percent(estimate),
                }
            )
            said.append(f"{name}, {MODEL_TITLES[score.model]}: {measured_text(estimate)}")
            y += _LINE
    params, opacity = legend_choice("model")
    domain = percent_domain(estimate for _, members in groups for _, estimate in members)
    vertical = {"field": "y", "type": "quantitative", "scale": {"domain": [0, y], "reverse": True}, "axis": None}
    horizontal = {
        "field": "value", "type": "quantitative", "title": None, "axis": {"tickCount": 5},
        "scale": {"domain": domain, "nice": 5, "zero": False, "rangeMax": {"expr": f"width - {_VALUES}"}},
    }  # fmt: skip
    tooltip = [{"field": "of", "title": "setting" if len(groups) == len(rows) else "difficulty"},
               {"field": "model"}, {"field": "decode"},
               {"field": "number", "title": f"pass@{k}, %"}, {"field": "interval"}]  # fmt: skip
    shared = {"y": vertical, "opacity": opacity, "color": model_scale("color"), "tooltip": tooltip}
    return plot(
        f"pass@{k}",
        text=f"pass@{k} in percent. {'; '.join(said)}.",
        note="percent",
        height=y,
        data={"values": rows},
        layer=[
            {
                "params": params,
                "mark": {"type": "rule", "strokeWidth": 2.5, "strokeCap": "round"},
                "encoding": {**shared, "x": {**horizontal, "field": "low"}, "x2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "filled": True},
                "encoding": {**shared, "x": horizontal, "shape": model_scale("shape"), "size": model_size(100)},
            },
            {
                "mark": {"type": "text", "align": "right", "baseline": "middle", "fontWeight": 600, "fontSize": 13.5},
                "encoding": {**shared, "x": {"value": "width"}, "text": {"field": "number"}},
            },
            {
                "data": {"values": headers},
                "mark": {"type": "text", "align": "left", "baseline": "middle", "fontWeight": 500},
                "encoding": {"x": {"value": 0}, "y": vertical, "text": {"field": "name"}},
            },
        ],
    )
