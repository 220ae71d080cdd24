"""Formats values for the pages."""

from __future__ import annotations

import re
from urllib.parse import quote

from megatron_ssd.evaluation.results import ModelName

MODEL_TITLES: dict[ModelName, str] = {"base": "base", "ssd": "SSD"}

# Controls but for tab and line ends; zero-width and bidirectional marks; line and paragraph separators; surrogates;
# noncharacters; tag characters.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
)


def duration(seconds: float) -> str:
    """``48 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def compact(value: float) -> str:
    """A number in few characters: ``0.25``, ``1.2k``, ``3e-4``."""
    size = abs(value)
    if size >= 1000:
        return f"{value / 1000:g}k"
    if value and size < 0.001:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.6g}"


def visible(text: str) -> str:
    """``text`` with each invisible character as its code in brackets, for example ``⟨U+202E⟩``; always valid UTF-8."""
    return _INVISIBLE.sub(lambda match: f"\N{MATHEMATICAL LEFT ANGLE BRACKET}U+{ord(match[0]):04X}"
                                     "\N{MATHEMATICAL RIGHT ANGLE BRACKET}", text)  # fmt: skip


def anchor(problem_id: str) -> str:
    """The part of a problem's address after ``#``."""
    return quote(visible(problem_id), safe="")


def problems_page(benchmark: str) -> str:
    """The file name of the page with every problem of ``benchmark``."""
    return f"problems-{benchmark}.html"
