"""Vega-Lite specifications for the decode settings: heat maps of the grid, and pass@1 over the effective temperature.

Each model and top-k has its own panel. All heat maps share one color scale, all effective-temperature plots their axes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from megatron_ssd.evaluation.results import EffectivePoint, EvaluationResults, GridCell, ModelName
from megatron_ssd.report.plots import (
    MODEL_TITLES,
    Plot,
    in_percent,
    legend_choice,
    measured_text,
    model_scale,
    model_size,
    percent_domain,
    plot,
)
from megatron_ssd.report.theme import heat_level
from megatron_ssd.text_table import DASH, NOT_MEASURED

Range = tuple[float, float]

_ROW = 37  # pixels
_MAX_CURVES = 3  # of one model in a panel; with more, points and their mean are easier to read
_DASHES = [[1.5, 3.5], [7, 4], [1, 0]]
_GAPS = {"x": 0.06, "y": 0.13}  # between cells, as shares of their width and height
_CORNER = "M-1,-1L1,-1L-1,1Z"  # marks the training decode in the corner of its cell


def heat_maps(results: EvaluationResults) -> list[Plot]:
    """A panel for each top-k and model, then one for each model's settings that no table has a cell for."""
    scores = value_range(results)
    table = [cell for cell in results.grid if not cell.has_further_parameters]
    beside = [cell for cell in (*results.grid, results.beside_grid) if cell is not None and cell not in table]
    panels = []
    for top_k in sorted({cell.top_k for cell in table}, key=_top_k_order):
        for model in MODEL_TITLES:
            cells = [cell for cell in table if (cell.top_k, cell.model) == (top_k, model)]
            if cells:
                panels.append(_heat_map(f"{_title(model)}, {_top_k_text(top_k)}", cells, scores))
    for model in MODEL_TITLES:
        cells = [cell for cell in beside if cell.model == model]
        if cells:
            panels.append(_heat_list(f"{_title(model)}, beside the table", cells, scores))
    return panels


def value_range(results: EvaluationResults) -> Range:
    """The lowest and the highest score of all heat maps."""
    cells = [cell for cell in (*results.grid, results.beside_grid) if cell is not None]
    values = [cell.pass_at_1 for cell in cells if cell.pass_at_1 is not None] or [0.0]
    return min(values), max(values)


def effective_plots(results: EvaluationResults) -> list[Plot]:
    """Scores over the effective temperature, a panel for each top-k."""
    points = _effective_points(results)
    if not points:
        return []
    chosen = {(cell.model, cell.decoding) for cell in results.grid if cell.chosen}
    temperatures = [point.effective_temperature for point in points]
    reach = (max(temperatures) - min(temperatures)) or 1.0
    top_ps = _top_ps(points)
    axes = {
        "x": [min(temperatures) - 0.05 * reach, max(temperatures) + 0.05 * reach],
        "y": percent_domain(points),
    }
    # Points at one temperature are drawn beside each other, so that no interval hides another.
    step = reach * (0.008 if len(top_ps) > _MAX_CURVES else 0.014)
    offsets = {p: step * (index - (len(top_ps) - 1) / 2) for index, p in enumerate(top_ps)}
    by_top_k: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for point in points:
        by_top_k[point.top_k].append(
            {
                "model": MODEL_TITLES[point.model],
                "decode": point.decoding,
                "top_p": f"{point.top_p:g}",
                "T_eff": round(point.effective_temperature, 6),
                "x": round(point.effective_temperature + offsets[point.top_p], 6),
                "score": measured_text(point),
                "chosen": (point.model, point.decoding) in chosen,
                **in_percent(point),
            }
        )
    return [_effective_plot(top_k, by_top_k[top_k], top_ps, axes) for top_k in sorted(by_top_k, key=_top_k_order)]


def mean_note(results: EvaluationResults) -> str:
    """What the lines of ``effective_plots`` are, if they are not one for each top-p."""
    top_ps = _top_ps(_effective_points(results))
    if len(top_ps) <= _MAX_CURVES:
        return ""
    return f"Lines are means over the {len(top_ps)} values of top-p; points are single settings."


def _heat_map(title: str, cells: Sequence[GridCell], scores: Range) -> Plot:
    """Scores of one model at one top-k over temperature (down) and top-p (across)."""
    axis = {"labelFontSize": 12.5, "labelAngle": 0, "grid": False}
    place = {
        "x": {"field": "top_p", "type": "ordinal", "title": "top-p", "axis": {**axis, "orient": "top"}},
        "y": {"field": "temperature", "type": "ordinal", "title": "temperature", "axis": axis},
    }
    return _heat(title, cells, scores, place, num_rows=len({cell.temperature for cell in cells}))


def _heat_list(title: str, cells: Sequence[GridCell], scores: Range) -> Plot:
    """Scores of settings of one model that have no cell in a heat map, one per line."""
    axis = {"labelFontSize": 12.5, "labelLimit": 260, "grid": False, "title": None}
    return _heat(
        title, cells, scores, {"y": {"field": "what", "type": "ordinal", "sort": None, "axis": axis}},
        num_rows=len(cells),
    )  # fmt: skip


def _heat(
    title: str, cells: Sequence[GridCell], scores: Range, place: dict[str, Any], *, num_rows: int
) -> Plot:  # fmt: skip
    """Cells with their score; the chosen one has a frame, and the decode of the training data a marked corner."""
    rows = [_heat_row(cell, scores) for cell in cells]
    axes = {
        name: {**channel, "scale": {"paddingInner": _GAPS[name], "paddingOuter": 0.06}}
        for name, channel in place.items()
    }
    corner = {name: {**channel, "bandPosition": 0.02} for name, channel in axes.items()} | (
        {} if "x" in axes else {"x": {"value": 0}}
    )
    tooltip = [{"field": "decode"}, {"field": "label", "title": "score, %"}, {"field": "role"}]
    cell = {"fill": _as_given("fill"), "stroke": _as_given("stroke"), "strokeWidth": _as_given("frame", "quantitative")}
    said = "; ".join(f"{row['decode']}: {row['label']}{row['role'] and ' (' + row['role'] + ')'}" for row in rows)
    return plot(
        title,
        text=f"{title}, score in percent. {said}.",
        height=_ROW * num_rows,
        data={"values": rows},
        encoding=axes,
        layer=[
            {"mark": {"type": "rect", "cornerRadius": 3}, "encoding": {**cell, "tooltip": tooltip}},
            {
                "mark": {"type": "text", "fontSize": 13},
                "encoding": {"text": {"field": "label"}, "fill": _as_given("ink"), "tooltip": tooltip},
            },
            {
                "transform": [{"filter": "datum.training"}],
                "mark": {"type": "point", "shape": _CORNER, "filled": True, "size": 45, "xOffset": 5, "yOffset": 5},
                "encoding": {**corner, "fill": _as_given("ink")},
            },
        ],
    )


def _as_given(field: str, kind: str = "nominal") -> dict[str, Any]:
    """Encoding of a field that holds the color or width itself, not a value to scale."""
    return {"field": field, "type": kind, "scale": None, "legend": None}


def _heat_row(cell: GridCell, scores: Range) -> dict[str, Any]:
    known = cell.pass_at_1 is not None
    level = 0 if cell.pass_at_1 is None else heat_level(cell.pass_at_1, *scores)
    roles = [word for word, holds in (("chosen", cell.chosen), ("training decode", cell.training)) if holds]
    return {
        "temperature": cell.temperature,
        "top_p": cell.top_p,
        "what": f"{cell.decoding}, training decode" if cell.training else cell.decoding,
        "decode": cell.decoding,
        "label": DASH if cell.pass_at_1 is None else f"{100 * cell.pass_at_1:.1f}",
        "role": ", ".join(roles) if known else NOT_MEASURED,
        "training": cell.training,
        "fill": f"var(--heat-{level})" if known else "var(--page)",
        "ink": f"var(--on-heat-{level})" if known else "var(--ink)",
        "stroke": "var(--ink)" if cell.chosen else "none" if known else "var(--rule)",
        "frame": 2.5 if cell.chosen else 1,
    }


def _effective_plot(
    top_k: int, rows: list[dict[str, Any]], top_ps: Sequence[float], axes: dict[str, list[float]]
) -> Plot:  # fmt: skip
    many = len(top_ps) > _MAX_CURVES
    params, opacity = legend_choice("model") if many else legend_choice("model", "top_p")
    across = {
        "type": "quantitative",
        "title": "effective temperature",
        "scale": {"domain": axes["x"], "zero": False, "nice": False},
        "axis": {"grid": False, "tickCount": 6},
    }
    up = {
        "type": "quantitative",
        "title": None,
        "scale": {"domain": axes["y"], "nice": 4, "zero": False},
        "axis": {"tickCount": 4},
    }
    tooltip = [
        {"field": "model"},
        {"field": "decode"},
        {"field": "T_eff", "type": "quantitative", "format": ".3~g"},
        {"field": "score", "title": "score, %"},
    ]
    shared = {"color": model_scale("color"), "opacity": opacity, "tooltip": tooltip}
    x, y = {**across, "field": "x"}, {**up, "field": "value"}
    line: dict[str, Any] = {"color": model_scale("color"), "opacity": opacity}
    if many:
        line |= {"x": {**across, "field": "T_eff"}, "y": {**y, "aggregate": "mean"}}
    else:
        scale = {"domain": [f"{p:g}" for p in top_ps], "range": _DASHES[len(_DASHES) - len(top_ps) :]}
        legend = {
            "title": "top-p",
            "orient": "bottom",
            "symbolType": "stroke",
            "symbolSize": 300,
            "symbolStrokeColor": "var(--ink)",
        }
        line |= {"x": x, "y": y, "strokeDash": {"field": "top_p", "type": "nominal", "scale": scale, "legend": legend}}
    name = _top_k_text(top_k)
    said = "; ".join(f"{row['model']}, {row['decode']}, T_eff {row['T_eff']:.3g}: {row['score']}" for row in rows)
    return plot(
        _capital(name),
        text=f"Score in percent over the effective temperature, {name}. {said}.",
        note="percent",
        height=210,
        data={"values": rows},
        layer=[
            {
                "params": params[:1],  # of the model: a legend listens in the first layer that makes it
                "mark": {"type": "rule", "strokeWidth": 1.25, "strokeOpacity": 0.6},
                "encoding": {**shared, "x": x, "y": {**up, "field": "low"}, "y2": {"field": "high"}},
            },
            {"params": params[1:], "mark": {"type": "line", "strokeWidth": 1.5}, "encoding": line},
            {
                "mark": {"type": "point", "filled": True},
                "encoding": {
                    **shared,
                    "x": x,
                    "y": y,
                    "shape": model_scale("shape"),
                    "size": model_size(30 if many else 65),
                },
            },
            {
                "transform": [{"filter": "datum.chosen"}],
                "mark": {"type": "point", "shape": "circle", "size": 300, "stroke": "var(--ink)", "strokeWidth": 1.5},
                "encoding": {"x": x, "y": y, "tooltip": tooltip},
            },
        ],
    )


def _effective_points(results: EvaluationResults) -> list[EffectivePoint]:
    """Measured points whose only settings are temperature, top-k and top-p."""
    return [
        point for point in results.effective_temperature.points if point.is_known and not point.has_further_parameters
    ]


def _top_ps(points: Sequence[EffectivePoint]) -> list[float]:
    return sorted({point.top_p for point in points})


def _top_k_order(top_k: int) -> float:
    return float("inf") if top_k == -1 else top_k


def _top_k_text(top_k: int) -> str:
    return "no top-k" if top_k == -1 else f"top-k {top_k}"


def _title(model: ModelName) -> str:
    return _capital(MODEL_TITLES[model])


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
