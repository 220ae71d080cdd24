"""Records when processes, perhaps on several machines, worked on a stage, each process in its own file.

Times are seconds since the epoch, so that overlapping spans are not counted twice. A process that is killed loses the
time since its last note.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path

from megatron_ssd.artifacts.atomic import write_atomically

Span = list[float]  # begin, end


class SpanNotes:
    """The spans of one process by activity, after those that earlier starts wrote to ``path``."""

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
        """End the open span of ``what``. It is on disk after the next note."""
        self._extend()
        del self._open[what]

    def note(self, *, every: float = 0.0) -> None:
        """Extend the open spans to now and write all spans; at most once per ``every`` seconds."""
        if time.monotonic() - self._noted < every:
            return
        self._noted = time.monotonic()
        self._extend()
        write_atomically(self._path, json.dumps(self._spans))

    def _extend(self) -> None:
        for span in self._open.values():
            span[1] = max(span[1], time.time())


def read_spans(paths: Iterable[Path]) -> dict[str, list[Span]]:
    """Every span in ``paths``, by activity."""
    spans: dict[str, list[Span]] = {}
    for path in paths:
        for what, found in json.loads(path.read_text(encoding="utf-8")).items():
            spans.setdefault(what, []).extend(found)
    return spans


def seconds_covered(spans: Iterable[Span]) -> float:
    """Seconds covered by at least one span."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
