"""Builds the plots of decode settings.

Heat maps show the score of each cell of the grid, with a panel for each model and top-k and one color scale for all.
Other plots show scores over the effective temperature, with a panel for each top-k and the same axes for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from megatron_ssd.evaluation.results import EffectivePoint, EvaluationResults, GridCell
from megatron_ssd.formatting import DASH, NOT_MEASURED
from megatron_ssd.report import plots
from megatron_ssd.report.theme import HEAT_LEVELS, MODEL_TITLES

_CELL = 37  # pixels, the height of a cell
_MAX_CURVES = 3  # of one model in a panel; with more, points and their mean are easier to read
_DASHES = [[1.5, 3.5], [7, 4], [1, 0]]
_CORNER = "M-1,-1L1,-1L-1,1Z"  # marks the training decode in the corner of its cell


def heat_maps(results: EvaluationResults) -> list[plots.Plot]:
    """A panel for each top-k and model, then one for each model's settings that are not in these tables."""
    table = [cell for cell in results.grid if not cell.has_further_parameters]
    others = [cell for cell in (*results.grid, results.beside_grid) if cell is not None and cell not in table]
    axis = {"labelFontSize": 12.5, "labelAngle": 0, "grid": False}
    lines = alt.Scale(paddingInner=0.13)
    top_p = alt.X("top_p:O", title="top-p", axis=alt.Axis(orient="top", **axis), scale=alt.Scale(padding=0.06))
    temperature = alt.Y("temperature:O", axis=alt.Axis(**axis), scale=lines)
    setting = alt.Y("setting:N", sort=None, title=None, axis=alt.Axis(labelLimit=260, **axis), scale=lines)
    panels = []
    for top_k in _top_ks(table):
        for model, name in MODEL_TITLES.items():
            cells = [cell for cell in table if (cell.top_k, cell.model) == (top_k, model)]
            panels.append((f"{name}, {_top_k_text(top_k)}", cells, [top_p, temperature]))
    for model, name in MODEL_TITLES.items():
        panels.append((f"{name}, beside the table", [cell for cell in others if cell.model == model], [setting]))
    scores = value_range(results)
    return [_heat_map(title, cells, scores, channels) for title, cells, channels in panels if cells]


def value_range(results: EvaluationResults) -> tuple[float, float]:
    """The lowest and the highest score of all heat maps."""
    cells = [cell for cell in (*results.grid, results.beside_grid) if cell is not None]
    values = [cell.pass_at_1 for cell in cells if cell.pass_at_1 is not None] or [0.0]
    return min(values), max(values)


def effective_plots(results: EvaluationResults) -> list[plots.Plot]:
    """Scores over the effective temperature, a panel for each top-k."""
    points = _effective_points(results)
    if not points:
        return []
    chosen = {(cell.model, cell.decoding) for cell in results.grid if cell.chosen}
    temperatures = [point.effective_temperature for point in points]
    span = (max(temperatures) - min(temperatures)) or 1.0
    top_ps = sorted({point.top_p for point in points})
    # Points at one temperature are drawn next to each other, so that no interval hides another.
    step = span * (0.008 if len(top_ps) > _MAX_CURVES else 0.014)
    offsets = {p: step * (index - (len(top_ps) - 1) / 2) for index, p in enumerate(top_ps)}
    x_scale = alt.Scale(
        domain=[min(temperatures) - 0.05 * span, max(temperatures) + 0.05 * span], nice=False, zero=False
    )
    y_scale = alt.Scale(domain=plots.percent_domain(points), nice=4, zero=False)
    x = alt.X("x:Q", title="effective temperature", scale=x_scale, axis=alt.Axis(grid=False, tickCount=6))
    y = alt.Y("value:Q", title=None, scale=y_scale, axis=alt.Axis(tickCount=4))
    panels = []
    for top_k in _top_ks(points):
        rows = [
            {
                "model": MODEL_TITLES[point.model],
                "decode": point.decoding,
                "top_p": f"{point.top_p:g}",
                "T_eff": round(point.effective_temperature, 6),
                "x": round(point.effective_temperature + offsets[point.top_p], 6),
                "score": plots.measured_text(point),
                "chosen": (point.model, point.decoding) in chosen,
                **plots.in_percent(point),
            }
            for point in points
            if point.top_k == top_k
        ]
        panels.append(_effective_plot(_top_k_text(top_k), rows, x, y, top_ps))
    return panels


def mean_note(results: EvaluationResults) -> str:
    """What the lines of ``effective_plots`` are, if they are not one for each top-p."""
    count = len({point.top_p for point in _effective_points(results)})
    if count <= _MAX_CURVES:
        return ""
    return f"Lines are means over the {count} values of top-p; points are single settings."


def _heat_map(
    title: str, cells: Sequence[GridCell], scores: tuple[float, float], channels: list[alt.X | alt.Y]
) -> plots.Plot:
    """Cells with their score; the chosen one has a frame, and the decode of the training data a marked corner."""
    rows = [_heat_row(cell) for cell in cells]
    low, high = (100 * score for score in scores)
    domain = [low, high if high > low else low + 1]

    def by_score(channel: type[alt.Fill | alt.Color], name: str, not_measured: str) -> Any:
        colors = [f"var(--{name}-{level})" for level in range(HEAT_LEVELS)]
        scale = alt.Scale(type="quantize", domain=domain, range=colors)
        known = alt.expr.isValid(alt.datum.score)
        return alt.condition(known, channel("score:Q", scale=scale, legend=None), alt.value(not_measured))

    tooltip = ["decode:N", alt.Tooltip("label:N", title="score, %"), "role:N"]
    base = plots.chart_of(rows).encode(*channels, tooltip=tooltip)
    boxes = base.mark_rect(cornerRadius=3).encode(
        fill=by_score(alt.Fill, "heat", "var(--page)"),
        stroke=alt.condition(alt.datum.chosen, alt.value("var(--ink)"), alt.value("var(--rule)")),
        strokeWidth=alt.condition(alt.datum.chosen, alt.value(2.5), alt.value(1)),
    )
    ink = base.encode(color=by_score(alt.Color, "on-heat", "var(--ink)"))
    labels = ink.mark_text(fontSize=13).encode(text="label:N")
    width = "bandwidth('x')" if len(channels) == 2 else "width"
    corners = ink.transform_filter(alt.datum.training).mark_point(
        shape=_CORNER, filled=True, size=45, opacity=1,
        xOffset=alt.ExprRef(f"6 - {width} / 2"), yOffset=alt.ExprRef("6 - bandwidth('y') / 2"),
    )  # fmt: skip
    values = "; ".join(f"{row['decode']}: {row['label']}{row['role'] and ' (' + row['role'] + ')'}" for row in rows)
    num_lines = len({row["temperature"] for row in rows}) if len(channels) == 2 else len(rows)
    return plots.plot(
        alt.layer(boxes, labels, corners), title, height=_CELL * num_lines, text=f"{title}, score in percent. {values}."
    )


def _heat_row(cell: GridCell) -> dict[str, Any]:
    score = cell.pass_at_1
    roles = [word for word, holds in (("chosen", cell.chosen), ("training decode", cell.training)) if holds]
    return {
        "temperature": cell.temperature,
        "top_p": cell.top_p,
        "setting": f"{cell.decoding}, training decode" if cell.training else cell.decoding,
        "decode": cell.decoding,
        "score": None if score is None else round(100 * score, 4),
        "label": DASH if score is None else f"{100 * score:.1f}",
        "role": NOT_MEASURED if score is None else ", ".join(roles),
        "chosen": cell.chosen,
        "training": cell.training,
    }


def _effective_plot(title: str, rows: list[dict[str, Any]], x: alt.X, y: alt.Y, top_ps: Sequence[float]) -> plots.Plot:
    """Points with intervals, a ring around the chosen ones, and a line for each top-p or for their mean."""
    many = len(top_ps) > _MAX_CURVES
    (only_model, *only_top_p), opacity = plots.legend_choice("model") if many else plots.legend_choice("model", "top_p")
    tooltip = ["model:N", "decode:N", alt.Tooltip("T_eff:Q", format=".3~g"), alt.Tooltip("score:N", title="score, %")]
    base = plots.chart_of(rows).encode(x=x, y=y)
    rings = base.encode(tooltip=tooltip).transform_filter(alt.datum.chosen).mark_point(
        shape="circle", size=300, stroke="var(--ink)", strokeWidth=1.5, opacity=1
    )  # fmt: skip
    colored = base.encode(color=plots.model_color(), opacity=opacity)
    bars = colored.mark_rule(strokeWidth=1.25, strokeOpacity=0.6).encode(y="low:Q", y2="high:Q", tooltip=tooltip)
    if many:
        lines = colored.mark_line(strokeWidth=1.5).encode(x="T_eff:Q", y="mean(value):Q")
    else:
        scale = alt.Scale(domain=[f"{p:g}" for p in top_ps], range=_DASHES[len(_DASHES) - len(top_ps) :])
        legend = alt.Legend(
            title="top-p", orient="bottom", symbolType="stroke", symbolSize=300, symbolStrokeColor="var(--ink)"
        )  # fmt: skip
        dashes = alt.StrokeDash("top_p:N", scale=scale, legend=legend)
        lines = colored.mark_line(strokeWidth=1.5).encode(strokeDash=dashes)
    points = plots.model_points(colored.encode(tooltip=tooltip), 30 if many else 65)
    # A legend is bound to the parameter of the first layer that has this legend.
    chart = alt.layer(bars.add_params(only_model), lines.add_params(*only_top_p), points, rings)
    values = "; ".join(f"{row['model']}, {row['decode']}, T_eff {row['T_eff']:.3g}: {row['score']}" for row in rows)
    text = f"Score in percent over the effective temperature, {title}. {values}."
    return plots.plot(chart, title, height=210, text=text, note="percent")


def _effective_points(results: EvaluationResults) -> list[EffectivePoint]:
    """Measured points whose only settings are temperature, top-k and top-p."""
    points = results.effective_temperature.points
    return [point for point in points if point.is_known and not point.has_further_parameters]


def _top_ks(settings: Sequence[GridCell | EffectivePoint]) -> list[int]:
    """Each top-k in ascending order, then -1, which means no top-k."""
    return sorted({setting.top_k for setting in settings}, key=lambda top_k: (top_k == -1, top_k))


def _top_k_text(top_k: int) -> str:
    return "no top-k" if top_k == -1 else f"top-k {top_k}"
