"""The pictures of the decode settings: heat maps over temperature and top-p, and pass@1 over T_eff.

Each model and top-k has a panel of its own. All heat maps share one colour scale, all panels of T_eff their axes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from markupsafe import Markup

from megatron_ssd.evaluation.results import EffectivePoint, EvaluationResults, GridCell, ModelName
from megatron_ssd.report import svg
from megatron_ssd.report.plots import MODEL_TITLES, percent_scale, percent_text
from megatron_ssd.report.svg import WIDTH, Scale, element, line, mark, text
from megatron_ssd.report.theme import DARK, LIGHT, heat_color, text_on
from megatron_ssd.text_table import DASH, NOT_MEASURED

Range = tuple[float, float]

_GAP = 5.0  # between the cells of a heat map; the frame of the chosen one stands in it
_LEFT, _ROW = 44.0, 37.0
_MAX_CURVES = 3  # of one model in a panel; beyond it points and their mean are easier to read
_DASHES = ("1.5 3.5", "7 4", "none")
_PLOT_BOTTOM, _PLOT_LEFT, _PLOT_RIGHT = 216.0, 40.0, WIDTH - 12


def heat_maps(results: EvaluationResults) -> list[tuple[str, Markup]]:
    """(title, drawing) of every panel: top-k by top-k, base before SSD, then what no table has a place for."""
    scores = value_range(results)
    table = [cell for cell in results.grid if not cell.has_further_parameters]
    beside = [cell for cell in (*results.grid, results.beside_grid) if cell is not None and cell not in table]
    panels = []
    for top_k in sorted({cell.top_k for cell in table}, key=_top_k_order):
        for model in MODEL_TITLES:
            cells = [cell for cell in table if (cell.top_k, cell.model) == (top_k, model)]
            if cells:
                panels.append((f"{_title(model)}, {top_k_text(top_k)}", heat_map(cells, scores)))
    for model in MODEL_TITLES:
        cells = [cell for cell in beside if cell.model == model]
        if cells:
            panels.append((f"{_title(model)}, beside the table", heat_list(cells, scores)))
    return panels


def heat_map(cells: Sequence[GridCell], scores: Range) -> Markup:
    """Score of one model at one top-k over temperature (down) and top-p (across).

    The chosen cell is framed, and the decode of the training data has a corner.
    """
    temperatures = sorted({cell.temperature for cell in cells})
    top_ps = sorted({cell.top_p for cell in cells})
    top, column = 40.0, (WIDTH - _LEFT - 4) / len(top_ps)
    parts = [text(_LEFT + (WIDTH - _LEFT) / 2, 12, "top-p", "axis", "middle"), text(0, 12, "temperature", "axis")]
    parts += [text(_LEFT + column * (i + 0.5), 31, f"{p:g}", anchor="middle") for i, p in enumerate(top_ps)]
    parts += [text(_LEFT - 10, top + _ROW * (i + 0.5) + 2, f"{t:g}", anchor="end") for i, t in enumerate(temperatures)]
    for cell in cells:
        x, y = _LEFT + column * top_ps.index(cell.top_p), top + _ROW * temperatures.index(cell.temperature)
        parts.append(_heat_cell(cell, x, y, column, scores))
    label = (
        f"score of the {MODEL_TITLES[cells[0].model]} model over temperature and top-p, {top_k_text(cells[0].top_k)}"
    )
    return svg.drawing(*parts, label=label, height=top + _ROW * len(temperatures) + 4)


def heat_list(cells: Sequence[GridCell], scores: Range) -> Markup:
    """Scores of settings of one model that have no place in a heat map, one to a line."""
    width = 76.0
    parts = []
    for index, cell in enumerate(cells):
        y = 4 + _ROW * index
        what = f"{cell.decoding}, training decode" if cell.training else cell.decoding
        parts.append(text(0, y + (_ROW - _GAP) / 2 + 4.5, what))
        parts.append(_heat_cell(cell, WIDTH - width - 4, y, width, scores))
    label = f"score of the {MODEL_TITLES[cells[0].model]} model at settings beside the table"
    return svg.drawing(*parts, label=label, height=4 + _ROW * len(cells))


def heat_legend(scores: Range) -> Markup:
    """The colour scale that all heat maps share."""
    low, high = scores
    steps = 40
    width = 220.0 / steps
    parts = [
        element("rect", x=90 + width * i, y=4, width=width + 0.5, height=12, **_heat_style(i / (steps - 1)))
        for i in range(steps)
    ]
    parts.append(text(82, 14, percent_text(low), anchor="end"))
    parts.append(text(90 + 228, 14, f"{percent_text(high)} %"))
    return svg.drawing(*parts, label="colour scale of the heat maps", height=20)


def value_range(results: EvaluationResults) -> Range:
    """The lowest and the highest score of all heat maps."""
    cells = [cell for cell in (*results.grid, results.beside_grid) if cell is not None]
    values = [cell.pass_at_1 for cell in cells if cell.pass_at_1 is not None] or [0.0]
    return min(values), max(values)


def effective_plots(results: EvaluationResults) -> list[tuple[str, Markup]]:
    """(title, drawing) of pass@1 over T_eff, a panel for each top-k."""
    points = _effective_points(results)
    if not points:
        return []
    chosen = {(cell.model, cell.decoding) for cell in results.grid if cell.chosen}
    temperatures = [point.effective_temperature for point in points]
    across = Scale(min(temperatures), max(temperatures), _PLOT_LEFT + 18, _PLOT_RIGHT - 12)
    up = percent_scale(points, start=_PLOT_BOTTOM, end=12)
    by_top_k: dict[int, list[EffectivePoint]] = defaultdict(list)
    for point in points:
        by_top_k[point.top_k].append(point)
    return [
        (_capital(top_k_text(top_k)), _effective_plot(by_top_k[top_k], _top_ps(points), across, up, chosen))
        for top_k in sorted(by_top_k, key=_top_k_order)
    ]


def curve_legend(results: EvaluationResults) -> list[tuple[Markup, str]]:
    """(sample, words) for the curves of ``effective_plots``: a dash for each top-p, or one line for their mean."""
    top_ps = _top_ps(_effective_points(results))
    if len(top_ps) > _MAX_CURVES:
        return [(_dash_sample("none"), f"mean over the {len(top_ps)} top-p; points are single settings")]
    return [(_dash_sample(dash), f"top-p {p:g}") for p, dash in zip(top_ps, _dashes(len(top_ps)), strict=True)]


def top_k_text(top_k: int) -> str:
    """``top-k 20``, or that there is none."""
    return "no top-k" if top_k == -1 else f"top-k {top_k}"


def _effective_plot(
    points: Sequence[EffectivePoint],
    top_ps: Sequence[float],
    across: Scale,
    up: Scale,
    chosen: set[tuple[ModelName, str]],
) -> Markup:
    parts = [line(_PLOT_LEFT, up(tick), _PLOT_RIGHT, up(tick), "grid") for tick in up.ticks(4)]
    parts += [text(_PLOT_LEFT - 8, up(tick) + 4, f"{tick * 100:g}", anchor="end") for tick in up.ticks(4)]
    parts += [text(across(tick), _PLOT_BOTTOM + 20, f"{tick:g}", anchor="middle") for tick in across.ticks(6)]
    parts.append(text(_PLOT_RIGHT, _PLOT_BOTTOM + 38, "effective temperature", "axis", "end"))
    many = len(top_ps) > _MAX_CURVES
    step = 3.0 if many else 6.0  # beside each other, so that intervals at one T_eff do not hide one another
    offset = {p: step * (i - (len(top_ps) - 1) / 2) for i, p in enumerate(top_ps)}
    own = {model: [point for point in points if point.model == model] for model in MODEL_TITLES}
    for model, mine in own.items():
        if many:
            parts.append(_curve(_means(mine, across, up), model, "none"))
            continue
        for p, dash in zip(top_ps, _dashes(len(top_ps)), strict=True):
            curve = [(across(t.effective_temperature) + offset[p], up(t.value)) for t in mine if t.top_p == p]
            parts.append(_curve(sorted(curve), model, dash))
    for point in points:
        x = across(point.effective_temperature) + offset[point.top_p]
        parts.append(_effective_mark(point, x, up, 2.8 if many else 4.2, (point.model, point.decoding) in chosen))
    label = f"score over the effective temperature, {top_k_text(points[0].top_k)}"
    return svg.drawing(*parts, label=label, height=_PLOT_BOTTOM + 44)


def _effective_mark(point: EffectivePoint, x: float, up: Scale, radius: float, chosen: bool) -> Markup:
    title = (
        f"{MODEL_TITLES[point.model]}, {point.decoding}, T_eff {point.effective_temperature:.3g}: "
        f"{percent_text(point.value)} % ({percent_text(point.low)} to {percent_text(point.high)})"
    )
    parts = [
        line(x, up(point.low), x, up(point.high), f"thin stroke-{point.model}"),
        mark(x, up(point.value), point.model, title=title + (", chosen" if chosen else ""), radius=radius),
    ]
    if chosen:
        parts.append(element("circle", cx=x, cy=up(point.value), r=radius + 5, class_="chosen ring"))
    return svg.join(parts)


def _means(points: Sequence[EffectivePoint], across: Scale, up: Scale) -> list[tuple[float, float]]:
    """Drawn points of the mean over top-p at each T_eff."""
    values: dict[float, list[float]] = defaultdict(list)
    for point in points:
        values[point.effective_temperature].append(point.value)
    return sorted((across(t), up(fmean(at_t))) for t, at_t in values.items())


def _curve(points: list[tuple[float, float]], model: ModelName, dash: str) -> Markup:
    return svg.path(points, f"trend stroke-{model}", stroke_dasharray=dash) if points else Markup("")


def _dashes(count: int) -> tuple[str, ...]:
    """Line patterns of ``count`` curves, solid for the largest top-p."""
    return _DASHES[len(_DASHES) - count :]


def _dash_sample(dash: str) -> Markup:
    sample = line(0, 7, 26, 7, "trend stroke-ink", stroke_dasharray=dash)
    return element("svg", sample, viewBox="0 0 26 14", aria_hidden="true", class_="dash")


def _heat_cell(cell: GridCell, x: float, y: float, column: float, scores: Range) -> Markup:
    """A cell at (x, y), in a column of the given width; what it is and its score show on hover."""
    low, high = scores
    width, height = column - _GAP, _ROW - _GAP
    if cell.pass_at_1 is None:
        hint = element("title", f"{cell.decoding}: {NOT_MEASURED}")
        empty = element("rect", hint, x=x, y=y, width=width, height=height, rx=3, class_="empty")
        return svg.join([empty, text(x + width / 2, y + height / 2 + 4.5, DASH, anchor="middle")])
    style = _heat_style((cell.pass_at_1 - low) / (high - low) if high > low else 0.0)
    roles = [f" ({word})" for word, holds in (("chosen", cell.chosen), ("training decode", cell.training)) if holds]
    hint = element("title", f"{cell.decoding}: {percent_text(cell.pass_at_1)} %{''.join(roles)}")
    parts = [element("rect", hint, x=x, y=y, width=width, height=height, rx=3, **style)]
    if cell.training:
        corner = " ".join(f"{x + right:g},{y + down:g}" for right, down in ((2, 2), (12, 2), (2, 12)))
        parts.append(element("polygon", points=corner, class_="heat-corner", style=style["style"]))
    class_ = "heat-text chosen-text" if cell.chosen else "heat-text"
    parts.append(
        element("text", percent_text(cell.pass_at_1), x=x + width / 2, y=y + height / 2 + 4.5, text_anchor="middle",
                class_=class_, style=style["style"])
    )  # fmt: skip
    if cell.chosen:
        parts.append(element("rect", x=x - 2, y=y - 2, width=width + 4, height=height + 4, rx=5, class_="chosen"))
    return svg.join(parts)


def _heat_style(fraction: float) -> dict[str, str]:
    """Fill and text colours of a heat-map value for both schemes, as CSS variables."""
    light, dark = heat_color(LIGHT, fraction), heat_color(DARK, fraction)
    return {
        "class_": "heat",
        "style": f"--light:{light};--dark:{dark};--on-light:{text_on(light)};--on-dark:{text_on(dark)}",
    }


def _effective_points(results: EvaluationResults) -> list[EffectivePoint]:
    """The points that temperature, top-k and top-p say all of, where anything was measured."""
    return [
        point for point in results.effective_temperature.points if point.is_known and not point.has_further_parameters
    ]


def _top_ps(points: Sequence[EffectivePoint]) -> list[float]:
    return sorted({point.top_p for point in points})


def _top_k_order(top_k: int) -> float:
    return float("inf") if top_k == -1 else top_k


def _title(model: ModelName) -> str:
    return _capital(MODEL_TITLES[model])


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
