"""Tests the time spans that a stage records."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from megatron_ssd.artifacts.spans import SpanNotes, read_spans, seconds_covered


def test_overlaps_count_once_and_gaps_do_not_count() -> None:
    assert seconds_covered([]) == 0
    assert seconds_covered([[5, 8], [1, 3], [2, 4], [6, 7]]) == 3 + 3


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted)))
def test_covered_seconds_equal_a_count_of_single_seconds(spans: list[list[float]]) -> None:
    seconds = {second for begin, end in spans for second in range(int(begin), int(end))}
    assert seconds_covered(spans) == len(seconds)


def test_spans_of_every_start_are_kept_by_activity(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    with patch("time.time") as now:
        now.return_value = 100.0
        first = SpanNotes(path)
        first.begin("work")
        now.return_value = 103.0
        first.begin("sampling")
        now.return_value = 107.0
        first.end("sampling")
        now.return_value = 109.0
        first.note()
        now.return_value = 200.0
        second = SpanNotes(path)
        second.begin("work")
        now.return_value = 190.0  # the clock was set back
        second.note()
    assert read_spans([path]) == {"work": [[100, 109], [200, 200]], "sampling": [[103, 107]]}


def test_the_file_is_not_written_more_often_than_configured(tmp_path: Path) -> None:
    notes = SpanNotes(tmp_path / "notes.json")
    notes.begin("work")
    before = read_spans([tmp_path / "notes.json"])
    notes.note(every=3600)
    assert read_spans([tmp_path / "notes.json"]) == before
