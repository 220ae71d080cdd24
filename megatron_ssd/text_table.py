"""Scores as columns for a terminal, which every command that ends with a table writes alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MINUS = "\N{MINUS SIGN}"  # as wide as a plus, and never taken for a hyphen; every signed number has it
DASH = "\N{EN DASH}"  # in the place of a number that there is none of
NOT_MEASURED = "not measured"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line a row, each column as wide as its widest cell, two spaces between them. Rows are equally long."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def p_text(p_value: float) -> str:
    """``0.041``; below a thousandth only that it is."""
    return f"{p_value:.3f}" if p_value >= 0.001 else "< 0.001"


def split_cells(counts: Mapping[str, Any]) -> list[str]:
    """Problems ahead, behind and tied, and the p value, of a sign test as JSON; dashes where it had no problem."""
    numbers = [counts[part] for part in ("ahead", "behind", "tied")]
    return [*map(str, numbers), p_text(counts["p_value"])] if any(numbers) else [DASH] * 4


def counted(number: int, thing: str) -> str:
    """``1 problem``, ``1,055 problems``."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def signed(share: float) -> str:
    """A difference of shares in points, with its sign; a rounded zero has none."""
    rounded = round(share * 100, 1)
    if rounded == 0:
        return "0.0"
    return f"+{rounded:.1f}" if rounded > 0 else f"{MINUS}{-rounded:.1f}"
