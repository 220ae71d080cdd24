"""Exact deduplication on white-space-normalised text: the first of equal texts stays, in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def normalise(text: str) -> str:
    """``text`` with every run of white space (Unicode included) as one space, and none at the ends."""
    return " ".join(text.split())


def deduplicate(items: Iterable[T], text_of: Callable[[T], str]) -> tuple[list[T], int]:
    """The items whose normalised text was not seen before, in order, and how many others there were."""
    seen: set[str] = set()
    kept: list[T] = []
    dropped = 0
    for item in items:
        text = normalise(text_of(item))
        if text in seen:
            dropped += 1
        else:
            seen.add(text)
            kept.append(item)
    return kept, dropped
