"""The pictures of the report, each one SVG box of 400 units' width. See ``svg.py`` for the size and the colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from markupsafe import Markup

from megatron_ssd.report import svg
from megatron_ssd.report.palette import DARK, LIGHT, heat_color, text_on
from megatron_ssd.report.records import Estimate, GridCell, ModelName, Score, TrainingPoint
from megatron_ssd.report.svg import WIDTH, Scale, element, line, mark, text
from megatron_ssd.report.tables import compact

MODEL_TITLES: dict[ModelName, str] = {"base": "base", "ssd": "SSD"}

_ROW = 46.0
_HISTOGRAM_BINS = 30
_GAP = 5.0  # between the cells of a heat map; the frame of the chosen one stands in it


def forest(rows: Sequence[Score], k: int) -> Markup:
    """One line a headline row: pass@k with its interval, on a common axis."""
    scale = _percent_scale([row.overall[k] for row in rows], start=14, end=WIDTH - 58)
    bottom = 22 + _ROW * len(rows)
    parts = [_vertical_grid(scale, top=8, bottom=bottom - 8)]
    for index, row in enumerate(rows):
        y = 42 + _ROW * index
        parts.append(text(scale.start, y - 14, row.title, "label halo"))
        parts.append(_interval(row.overall[k], y, scale, row.model, title=f"{row.title}, {row.decoding}"))
    return svg.drawing(*parts, label=f"pass@{k} of every setting with intervals", height=bottom + 14)


def by_difficulty(base: Score, ssd: Score, k: int) -> Markup:
    """Base against SSD on every difficulty, pass@k with intervals."""
    names = list(base.by_difficulty)
    estimates = [score.by_difficulty[name][k] for score in (base, ssd) for name in names]
    scale = _percent_scale(estimates, start=14, end=WIDTH - 58)
    bottom = 14 + 66.0 * len(names)
    parts = [_vertical_grid(scale, top=8, bottom=bottom)]
    for index, name in enumerate(names):
        top = 28 + 66.0 * index
        count = base.problems_by_difficulty.get(name)
        parts.append(text(scale.start, top, name if count is None else f"{name} ({count} problems)", "label halo"))
        for offset, score in ((15, base), (33, ssd)):
            estimate = score.by_difficulty[name][k]
            title = f"{MODEL_TITLES[score.model]}, {name}, pass@{k}"
            parts.append(_interval(estimate, top + offset, scale, score.model, title=title))
    return svg.drawing(*parts, label=f"pass@{k} by difficulty, base against SSD", height=bottom + 22)


def heat_map(cells: Sequence[GridCell], model: ModelName, value_range: tuple[float, float]) -> Markup:
    """Score of one model over temperature (down) and top-p (across); the chosen cell is framed."""
    own = [cell for cell in cells if cell.model == model]
    temperatures = sorted({cell.temperature for cell in own})
    top_ps = sorted({cell.top_p for cell in own})
    left, top, row_height = 44.0, 40.0, 37.0
    column = (WIDTH - left - 4) / max(len(top_ps), 1)
    parts = [text(left + (WIDTH - left) / 2, 12, "top-p", "axis", "middle"), text(0, 12, "temperature", "axis")]
    parts += [text(left + column * (i + 0.5), 31, f"{p:g}", anchor="middle") for i, p in enumerate(top_ps)]
    parts += [
        text(left - 10, top + row_height * (i + 0.5) + 4, f"{t:g}", anchor="end") for i, t in enumerate(temperatures)
    ]
    frames = []
    for cell in own:
        x, y = left + column * top_ps.index(cell.top_p), top + row_height * temperatures.index(cell.temperature)
        parts.append(_heat_cell(cell, x, y, column, row_height, value_range))
        if cell.chosen:
            frames.append(
                element("rect", x=x - 1, y=y - 1, width=column - _GAP + 2, height=row_height - _GAP + 2, rx=4,
                        class_="chosen")
            )  # fmt: skip
    label = f"score of the {MODEL_TITLES[model]} model over temperature and top-p"
    return svg.drawing(*parts, *frames, label=label, height=top + row_height * len(temperatures) + 4)


def heat_legend(value_range: tuple[float, float]) -> Markup:
    """The colour scale that both heat maps share."""
    low, high = value_range
    steps = 40
    width = 220.0 / steps
    parts = [
        element("rect", x=90 + width * i, y=4, width=width + 0.5, height=12, **_heat_style(i / (steps - 1)))
        for i in range(steps)
    ]
    parts.append(text(82, 14, _percent(low), anchor="end"))
    parts.append(text(90 + 228, 14, f"{_percent(high)} %"))
    return svg.drawing(*parts, label="colour scale of the heat maps", height=20)


def curve(points: Sequence[tuple[float, float]], *, label: str, from_zero: bool = False) -> Markup:
    """A line over training iterations; ``from_zero`` keeps zero on the axis."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    horizontal = Scale(min(xs), max(xs), 46, WIDTH - 14) if xs else Scale(0, 1, 46, WIDTH - 14)
    vertical = svg.round_scale([*ys, 0.0] if from_zero else ys, 178, 10, count=4)
    parts = [_horizontal_grid(vertical, left=46, right=WIDTH - 14)]
    parts += [text(horizontal(t), 198, compact(t), anchor="middle") for t in horizontal.ticks(5)]
    parts.append(svg.path([(horizontal(x), vertical(y)) for x, y in points], "curve"))
    parts.append(text(WIDTH - 14, 216, "iteration", "axis", "end"))
    return svg.drawing(*parts, label=f"{label} over training iterations", height=222)


def thin(points: Sequence[TrainingPoint], limit: int = 800) -> tuple[list[TrainingPoint], int]:
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


def histogram(values: Sequence[int], *, label: str, unit: str) -> Markup:
    """How ``values`` are spread, over equal bins."""
    low, high = (min(values), max(values) + 1) if values else (0, 1)
    bins = max(1, min(_HISTOGRAM_BINS, high - low))
    counts = [0] * bins
    for value in values:
        counts[(value - low) * bins // (high - low)] += 1
    horizontal = Scale(low, high, 46, WIDTH - 14)
    vertical = svg.round_scale([0.0, float(max(counts))], 178, 10, floor=0.0, count=4)
    parts = [_horizontal_grid(vertical, left=46, right=WIDTH - 14)]
    width = (horizontal.end - horizontal.start) / bins
    for index, count in enumerate(counts):
        y = vertical(count)
        first, last = low + (high - low) * index / bins, low + (high - low) * (index + 1) / bins
        hint = element("title", f"{first:.0f} to {last:.0f} {unit}: {count}")
        parts.append(
            element("rect", hint, x=46 + width * index + 0.5, y=y, width=max(width - 1, 0.5), height=178 - y,
                    class_="fill-base")
        )  # fmt: skip
    parts += [text(horizontal(t), 198, compact(t), anchor="middle") for t in horizontal.ticks(5)]
    parts.append(text(WIDTH - 14, 216, unit, "axis", "end"))
    return svg.drawing(*parts, label=label, height=222)


def _interval(estimate: Estimate, y: float, scale: Scale, model: ModelName, *, title: str) -> Markup:
    """A mark, its interval as a line with ends, and the value written to the right; the text alone where it is NaN."""
    if not estimate.is_known:
        return text(WIDTH - 8, y + 4, "not measured", "tick", "end")
    low, high = scale(estimate.low), scale(estimate.high)
    parts = [
        line(low, y, high, y, f"interval stroke-{model}"),
        line(low, y - 4, low, y + 4, f"interval stroke-{model}"),
        line(high, y - 4, high, y + 4, f"interval stroke-{model}"),
        mark(scale(estimate.value), y, model, title=f"{title}: {_percent(estimate.value)} %"),
        text(WIDTH - 8, y + 4, _percent(estimate.value), f"value text-{model}", "end"),
    ]
    return _join(parts)


def _heat_cell(
    cell: GridCell, x: float, y: float, width: float, height: float, value_range: tuple[float, float]
) -> Markup:
    low, high = value_range
    style = _heat_style((cell.score - low) / (high - low) if high > low else 0.0)
    hint = element(
        "title", f"T {cell.temperature:g}, top-p {cell.top_p:g}: {_percent(cell.score)} %"
        + (" (chosen)" if cell.chosen else ""),
    )  # fmt: skip
    box = element("rect", hint, x=x, y=y, width=width - _GAP, height=height - _GAP, rx=3, **style)
    number = element(
        "text", _percent(cell.score), x=x + (width - _GAP) / 2, y=y + (height - _GAP) / 2 + 4.5,
        text_anchor="middle", class_="heat-text chosen-text" if cell.chosen else "heat-text", style=style["style"],
    )  # fmt: skip
    return _join([box, number])


def _heat_style(fraction: float) -> dict[str, str]:
    """Fill and text colours of a heat-map value for both schemes, as CSS variables."""
    light, dark = heat_color(LIGHT, fraction), heat_color(DARK, fraction)
    return {
        "class_": "heat",
        "style": f"--light:{light};--dark:{dark};--on-light:{text_on(light)};--on-dark:{text_on(dark)}",
    }


def _percent_scale(estimates: Sequence[Estimate], *, start: float, end: float) -> Scale:
    values = [bound for estimate in estimates if estimate.is_known for bound in (estimate.low, estimate.high)]
    return svg.round_scale([value * 100 for value in values], start, end, floor=0.0, ceiling=100.0).of_shares()


def _vertical_grid(scale: Scale, *, top: float, bottom: float) -> Markup:
    parts = []
    for tick in scale.ticks():
        parts.append(line(scale(tick), top, scale(tick), bottom, "grid"))
        parts.append(text(scale(tick), bottom + 15, f"{tick * 100:g}", anchor="middle"))
    return _join(parts)


def _horizontal_grid(scale: Scale, *, left: float, right: float) -> Markup:
    parts = []
    for tick in scale.ticks(4):
        parts.append(line(left, scale(tick), right, scale(tick), "grid"))
        parts.append(text(left - 8, scale(tick) + 4, compact(tick), anchor="end"))
    return _join(parts)


def _percent(share: float) -> str:
    return f"{share * 100:.1f}"


def _join(parts: Sequence[Markup]) -> Markup:
    return Markup("").join(parts)
