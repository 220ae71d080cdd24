"""Tests for the formatting of numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ssd.errors import UserError
from megatron_ssd.evaluation.tables import p_text, percent, points
from megatron_ssd.formatting import MINUS, compact, duration, signed
from megatron_ssd.grading.metrics import Estimate
from megatron_ssd.report.stage import print_report


@pytest.mark.parametrize(
    ("share", "written"),
    [(0.0104, "+1.0"), (-0.0104, f"{MINUS}1.0"), (0.0, "0.0"), (-0.0004, "0.0"), (0.0006, "+0.1")],
)
def test_signed_percentage_points(share: float, written: str) -> None:
    assert signed(share) == written


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(2.44, "2.4 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, written: str) -> None:
    assert duration(seconds) == written


@pytest.mark.parametrize(
    ("value", "written"), [(0.25, "0.25"), (1200, "1.2k"), (3e-4, "3e-4"), (1.5e-6, "1.5e-6"), (0, "0"), (-2000, "-2k")]
)
def test_compact_numbers(value: float, written: str) -> None:
    assert compact(value) == written


def test_estimates_have_their_interval() -> None:
    estimate = Estimate(value=0.345, low=0.3081, high=0.3822)
    assert (percent(estimate).value, percent(estimate).interval) == ("34.5", "30.8 to 38.2")
    difference = points(Estimate(value=0.01, low=-0.0091, high=0.0291))
    assert (difference.value, difference.interval) == ("+1.0", f"{MINUS}0.9 to +2.9")


def test_columns_in_the_terminal_are_aligned(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_report(published)
    lines = capsys.readouterr().out.splitlines()
    for (header, _, *rows), columns in (
        (lines[:6], ("decoding", "pass@1", "pass@5", "pass@10")),
        (lines[7:12], ("pass@1", "pass@10", "ahead  ", "behind", "tied", "sign test p")),
    ):
        for column in columns:
            start = header.index(column)
            assert all(row[start - 1] == " " and row[start] != " " for row in rows)
    assert max(map(len, lines[:12])) <= 125
    assert lines[11].split()[-4:] == ["61", "40", "49", "0.046"]


@pytest.mark.parametrize(("value", "written"), [(1.0, "1.000"), (0.0412, "0.041"), (0.001, "0.001"), (9e-4, "< 0.001")])
def test_p_values(value: float, written: str) -> None:
    assert p_text(value) == written


def test_a_missing_report_is_an_error_that_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"launch/report\.py"):
        print_report(tmp_path)
