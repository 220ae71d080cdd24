"""Spans of time that processes, perhaps on several machines, spent on one piece of work, each noted in its own file.

Times are seconds since the epoch by each machine's clock, so that overlapping spans can be told from added ones. A
process that is killed loses what came after its last note.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path

from megatron_ssd.artifacts.atomic import write_atomically

Span = list[float]  # begin, end


class SpanNotes:
    """The spans of one process by what it did in them, added to those that earlier starts left in ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spans = read_spans([path]) if path.exists() else {}
        self._open: dict[str, Span] = {}
        self._noted = 0.0

    def begin(self, what: str) -> None:
        """Begin a span of ``what``."""
        now = time.time()
        self._open[what] = [now, now]
        self._spans.setdefault(what, []).append(self._open[what])
        self.note()

    def end(self, what: str) -> None:
        """End the span that was begun. Stands on disk with the next note."""
        self._lengthen()
        del self._open[what]

    def note(self, *, every: float = 0.0) -> None:
        """Lengthen what was begun until now, on disk; at most once in ``every`` seconds."""
        if time.monotonic() - self._noted < every:
            return
        self._noted = time.monotonic()
        self._lengthen()
        write_atomically(self._path, json.dumps(self._spans))

    def _lengthen(self) -> None:
        for span in self._open.values():
            span[1] = max(span[1], time.time())


def read_spans(paths: Iterable[Path]) -> dict[str, list[Span]]:
    """Every span that was noted in ``paths``, by what was done in it."""
    spans: dict[str, list[Span]] = {}
    for path in paths:
        for what, found in json.loads(path.read_text(encoding="utf-8")).items():
            spans.setdefault(what, []).extend(found)
    return spans


def seconds_covered(spans: Iterable[Span]) -> float:
    """Seconds in which at least one span lasted."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
