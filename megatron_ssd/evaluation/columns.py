"""Scores as columns for a terminal, which every command that ends with a table writes alike."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line a row, each column as wide as its widest cell, two spaces between them. Rows are equally long."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def p_text(p_value: float) -> str:
    """``0.041``; below a thousandth only that it is."""
    return f"{p_value:.3f}" if p_value >= 0.001 else "< 0.001"
