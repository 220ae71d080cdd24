"""Small SVG building blocks: elements, scales with round ticks, and the frame that the plots share.

Everything is drawn in a box 400 units wide, so that its 12-unit text stays readable when a phone shows it 350 pixels
wide; wide pages put several boxes side by side. Colours are CSS variables: one drawing serves light and dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 400.0


def element(name: str, *children: Markup | str, **attributes: str | float) -> Markup:
    """``<name attributes>children</name>``, escaped. ``class_`` gives ``class``, ``_`` in a name gives ``-``."""
    parts = [f" {_attribute_name(key)}={_quoted(value)}" for key, value in attributes.items()]
    return Markup(f"<{name}{''.join(parts)}>{''.join(escape(child) for child in children)}</{name}>")


def drawing(*children: Markup, label: str, height: float) -> Markup:
    """A whole ``<svg>`` with a text alternative."""
    return element(
        "svg", *children, viewBox=f"0 0 {_number(WIDTH)} {_number(height)}", role="img", aria_label=label,
        width=WIDTH, height=height,
    )  # fmt: skip


def join(parts: Iterable[Markup]) -> Markup:
    """Several elements as one piece."""
    return Markup("").join(parts)


def text(x: float, y: float, content: str, class_: str = "tick", anchor: str = "start") -> Markup:
    """One line of text; ``y`` is its baseline."""
    return element("text", content, x=x, y=y, class_=class_, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str, **attributes: str | float) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_, **attributes)


def path(points: list[tuple[float, float]], class_: str, **attributes: str | float) -> Markup:
    """A line through ``points``."""
    steps = " ".join(f"{'L' if index else 'M'}{_number(x)} {_number(y)}" for index, (x, y) in enumerate(points))
    return element("path", d=steps, class_=class_, **attributes)


def mark(x: float, y: float, model: str, *, title: str, radius: float = 5.0) -> Markup:
    """The mark of a model: a disc for the base, a diamond of like area for SSD. ``title`` shows on hover."""
    hint = element("title", title)
    if model == "base":
        return element("circle", hint, cx=x, cy=y, r=radius, class_="fill-base")
    reach = 1.3 * radius
    corners = ((x, y - reach), (x + reach, y), (x, y + reach), (x - reach, y))
    return element(
        "polygon", hint, points=" ".join(f"{_number(a)},{_number(b)}" for a, b in corners), class_="fill-ssd"
    )


@dataclass(frozen=True)
class Scale:
    """Linear map from data [low, high] to drawing units [start, end]; ``start > end`` is a vertical axis."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where ``value`` is drawn."""
        span = self.high - self.low
        return self.start + (self.end - self.start) * ((value - self.low) / span if span else 0.5)

    def ticks(self, count: int = 5) -> list[float]:
        """About ``count`` round values (1, 2 or 5 times a power of ten) inside the range."""
        step = _round_step((self.high - self.low) / max(count, 1))
        if not step:
            return [self.low]
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(index * step, 12) for index in range(first, last + 1)]

    def of_shares(self) -> Scale:
        """The same scale for shares in [0, 1] where this one is for per cent."""
        return Scale(self.low / 100, self.high / 100, self.start, self.end)


def round_scale(
    values: list[float],
    start: float,
    end: float,
    *,
    floor: float = -math.inf,
    ceiling: float = math.inf,
    count: int = 5,
) -> Scale:
    """A scale over ``values`` widened to round ends, but never beyond ``floor`` and ``ceiling``."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    low, high = max(low, floor), min(high, ceiling)
    if high <= low:
        high = low + (abs(low) * 0.1 or 1.0)
    step = _round_step((high - low) / count)
    return Scale(
        max(math.floor(low / step + 1e-9) * step, floor), min(math.ceil(high / step - 1e-9) * step, ceiling), start, end
    )


def _round_step(raw: float) -> float:
    """The smallest of 1, 2, 5 x 10^n that is not below ``raw``; 0 for 0."""
    if raw <= 0:
        return 0.0
    power: float = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))


def _attribute_name(key: str) -> str:
    key = key.rstrip("_")
    return key if key == "viewBox" else key.replace("_", "-")


def _quoted(value: str | float) -> str:
    return f'"{escape(_number(value) if isinstance(value, float | int) else value)}"'


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
