"""Formats values as text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote

MINUS = "\N{MINUS SIGN}"  # as wide as a plus and not a hyphen; used for every negative number
DASH = "\N{EN DASH}"  # for a missing number
NOT_MEASURED = "not measured"

# Controls but for tab and line ends; zero-width and bidirectional marks; line and paragraph separators; surrogates;
# noncharacters; tag characters.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line per row; columns are as wide as their widest cell, with two spaces between. Rows have equal length."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def counted(number: int, thing: str) -> str:
    """``1 problem``, ``1,055 problems``."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def signed(share: float) -> str:
    """A difference of shares in percentage points with its sign; a rounded zero has no sign."""
    rounded = round(share * 100, 1)
    if rounded == 0:
        return "0.0"
    return f"+{rounded:.1f}" if rounded > 0 else f"{MINUS}{-rounded:.1f}"


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
