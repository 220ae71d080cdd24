"""Defines the look of the report: the names of the models, its colors.

Invariants, which the tests check:
- text on its background has a WCAG contrast of at least 4.5 to 1 in both schemes;
- base and SSD differ in hue along the blue-orange axis, which every common color blindness keeps apart. Plots also
  give them different marks, so that nothing depends on color alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ssd.evaluation.results import ModelName

HEAT_LEVELS = 24
MODEL_TITLES: dict[ModelName, str] = {"base": "base", "ssd": "SSD"}


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Colors of one page as ``#rrggbb``. ``heat`` runs from the lowest value of a heat map to the highest."""

    page: str
    panel: str
    ink: str
    muted: str
    rule: str
    base: str
    ssd: str
    heat: tuple[str, ...]

    def css_variables(self) -> str:
        """Declarations for a CSS rule: ``--page``, ..., and ``--heat-N`` with its text color ``--on-heat-N``."""
        named = [(name, getattr(self, name)) for name in ("page", "panel", "ink", "muted", "rule", "base", "ssd")]
        for level in range(HEAT_LEVELS):
            color = heat_color(self, level / (HEAT_LEVELS - 1))
            named += [(f"heat-{level}", color), (f"on-heat-{level}", text_on(color))]
        return " ".join(f"--{name}: {color};" for name, color in named)


LIGHT = Scheme(
    page="#ffffff", panel="#f5f6f4", ink="#1a1d21", muted="#5a636d", rule="#d8dcdf",
    base="#1f5fa8", ssd="#b34a06",
    heat=("#f1f3ee", "#c3d9cf", "#86b8ab", "#478e86", "#1b625f", "#0b3b3c"),
)  # fmt: skip
DARK = Scheme(
    page="#14171a", panel="#1d2125", ink="#e8ebee", muted="#a0a9b2", rule="#343b42",
    base="#74b3f0", ssd="#f29a52",
    heat=("#1f2629", "#22474a", "#2b6c6b", "#46938a", "#86bfae", "#d7ecdf"),
)  # fmt: skip


def heat_color(scheme: Scheme, fraction: float) -> str:
    """The color of a fraction in [0, 1] of the range from lowest to highest."""
    position = fraction * (len(scheme.heat) - 1)
    left = min(int(position), len(scheme.heat) - 2)
    return _mix(scheme.heat[left], scheme.heat[left + 1], position - left)


def text_on(background: str) -> str:
    """Black or white, whichever has more contrast on ``background``: at least 4.5 to 1 on any color."""
    return max("#000000", "#ffffff", key=lambda color: contrast_ratio(color, background))


def contrast_ratio(one: str, other: str) -> float:
    """WCAG 2 contrast of two colors, from 1 (the same) to 21 (black on white)."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: str) -> float:
    shares = [value / 255 for value in bytes.fromhex(color[1:])]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _mix(one: str, other: str, share: float) -> str:
    pairs = zip(bytes.fromhex(one[1:]), bytes.fromhex(other[1:]), strict=True)
    return f"#{bytes(round(a + (b - a) * share) for a, b in pairs).hex()}"
