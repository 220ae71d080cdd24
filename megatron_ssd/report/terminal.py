"""The headline table for a terminal: what a pipeline prints when it ends. Read from ``report/summary.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_ssd.errors import UserError
from megatron_ssd.report.records import Estimate
from megatron_ssd.report.tables import confidence_text, percent, points

_TITLES = "setting", "decoding"


def print_report(run_dir: Path) -> None:
    """Print the table base / SSD and the path of the page.

    Raises:
        UserError: the report was not published.
    """
    path = run_dir / "report" / "summary.json"
    if not path.is_file():
        raise UserError(f"file {path}", rule="does not exist", fix="run launch/report.py to its end")
    summary = json.loads(path.read_text(encoding="utf-8"))
    print(headline_text(summary, run_dir / "report" / "report.html"), flush=True)


def headline_text(summary: dict[str, Any], page: Path) -> str:
    """The table as aligned text, what it rests on, and where the page is."""
    ks = [key for key in summary["ssd"] if key.startswith("pass@")]
    header = [*_TITLES, *(text for k in ks for text in (k, "interval")), f"SSD ahead by, {ks[0]}"]
    rows = [header] + [_cells(row, ks) for row in summary["headline"]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-" * max(map(len, lines)))
    n = summary["ssd"]["n"]
    basis = (
        f"per cent of {n['problems']} problems x {n['samples_per_problem']} programs, the half on which nothing was "
        f"chosen; {confidence_text(summary['confidence'])} intervals, differences in points, paired by problem"
    )
    warning = [summary["notice"], ""] if summary["notice"] else []
    return "\n".join([*warning, *lines, "", basis, f"report: {page}"])


def _cells(row: dict[str, Any], ks: list[str]) -> list[str]:
    measured = [percent(Estimate.from_json(row[k])) for k in ks]
    ahead = row["ssd_ahead_by"]
    gain = points(Estimate.from_json(ahead[ks[0]])) if ahead else None
    scores = [text for score in measured for text in (score.value, score.interval)]
    return [row["title"], row["decoding"], *scores, f"{gain.value} ({gain.interval})" if gain else ""]
