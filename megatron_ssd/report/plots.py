"""The pictures of the report, each one SVG box of 400 units' width. See ``svg.py`` for the size and the colours.

Those of the decode settings stand in ``decode_plots.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from markupsafe import Markup

from megatron_ssd.evaluation.results import ModelName, Score
from megatron_ssd.grading.metrics import Estimate
from megatron_ssd.report import svg
from megatron_ssd.report.data import TrainingPoint
from megatron_ssd.report.formatting import compact
from megatron_ssd.report.svg import WIDTH, Scale, element, line, mark, text
from megatron_ssd.text_table import counted

MODEL_TITLES: dict[ModelName, str] = {"base": "base", "ssd": "SSD"}

_ROW = 46.0
_HISTOGRAM_BINS = 30


def forest(rows: Sequence[Score], k: int) -> Markup:
    """One line a headline row: pass@k with its interval, on a common axis."""
    scale = percent_scale([row.overall[k] for row in rows], start=14, end=WIDTH - 58)
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
    scale = percent_scale(estimates, start=14, end=WIDTH - 58)
    bottom = 14 + 66.0 * len(names)
    parts = [_vertical_grid(scale, top=8, bottom=bottom)]
    for index, name in enumerate(names):
        top = 28 + 66.0 * index
        count = base.problems_by_difficulty.get(name)
        parts.append(
            text(scale.start, top, name if count is None else f"{name} ({counted(count, 'problem')})", "label halo")
        )
        for offset, score in ((15, base), (33, ssd)):
            estimate = score.by_difficulty[name][k]
            title = f"{MODEL_TITLES[score.model]}, {name}, pass@{k}"
            parts.append(_interval(estimate, top + offset, scale, score.model, title=title))
    return svg.drawing(*parts, label=f"pass@{k} by difficulty, base against SSD", height=bottom + 22)


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
        mark(scale(estimate.value), y, model, title=f"{title}: {percent_text(estimate.value)} %"),
        text(WIDTH - 8, y + 4, percent_text(estimate.value), f"value text-{model}", "end"),
    ]
    return svg.join(parts)


def percent_scale(estimates: Sequence[Estimate], *, start: float, end: float) -> Scale:
    """A scale for shares with round ends in per cent that holds every interval."""
    values = [bound for estimate in estimates if estimate.is_known for bound in (estimate.low, estimate.high)]
    return svg.round_scale([value * 100 for value in values], start, end, floor=0.0, ceiling=100.0).of_shares()


def _vertical_grid(scale: Scale, *, top: float, bottom: float) -> Markup:
    parts = []
    for tick in scale.ticks():
        parts.append(line(scale(tick), top, scale(tick), bottom, "grid"))
        parts.append(text(scale(tick), bottom + 15, f"{tick * 100:g}", anchor="middle"))
    return svg.join(parts)


def _horizontal_grid(scale: Scale, *, left: float, right: float) -> Markup:
    parts = []
    for tick in scale.ticks(4):
        parts.append(line(left, scale(tick), right, scale(tick), "grid"))
        parts.append(text(left - 8, scale(tick) + 4, compact(tick), anchor="end"))
    return svg.join(parts)


def percent_text(share: float) -> str:
    """A share as a number of per cent with one decimal."""
    return f"{share * 100:.1f}"
