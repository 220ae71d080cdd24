"""Formats text tables for terminals."""

from __future__ import annotations

from collections.abc import Sequence

MINUS = "\N{MINUS SIGN}"  # as wide as a plus and not a hyphen; used for every negative number
DASH = "\N{EN DASH}"  # for a missing number
NOT_MEASURED = "not measured"


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
