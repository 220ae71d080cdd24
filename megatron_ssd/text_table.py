"""Formats text tables for terminals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MINUS = "\N{MINUS SIGN}"  # as wide as a plus and not a hyphen; used for every negative number
DASH = "\N{EN DASH}"  # instead of a number that does not exist
NOT_MEASURED = "not measured"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line per row; columns are as wide as their widest cell, with two spaces between. Rows have equal length."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def p_text(p_value: float) -> str:
    """A p value as ``0.041``, or ``< 0.001``."""
    return f"{p_value:.3f}" if p_value >= 0.001 else "< 0.001"


def split_cells(counts: Mapping[str, Any]) -> list[str]:
    """Problems ahead, behind and tied, and the p value, of a sign test in JSON; dashes if it had no problem."""
    numbers = [counts[part] for part in ("ahead", "behind", "tied")]
    return [*map(str, numbers), p_text(counts["p_value"])] if any(numbers) else [DASH] * 4


def counted(number: int, thing: str) -> str:
    """``1 problem``, ``1,055 problems``."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def signed(share: float) -> str:
    """A difference of shares in percentage points with its sign; a rounded zero has no sign."""
    rounded = round(share * 100, 1)
    if rounded == 0:
        return "0.0"
    return f"+{rounded:.1f}" if rounded > 0 else f"{MINUS}{-rounded:.1f}"
