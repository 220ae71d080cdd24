"""The headline tables for a terminal: what a pipeline prints when it ends. Read from ``report/summary.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_ssd.errors import UserError
from megatron_ssd.report.formatting import confidence_text, ends, percent, points
from megatron_ssd.report.records import Estimate
from megatron_ssd.text_table import aligned, counted, split_cells


def print_report(run_dir: Path) -> None:
    """Print the tables base / SSD and the path of the page.

    Raises:
        UserError: the report was not published.
    """
    path = run_dir / "report" / "summary.json"
    if not path.is_file():
        raise UserError(f"file {path}", rule="does not exist", fix="run launch/report.py to its end")
    summary = json.loads(path.read_text(encoding="utf-8"))
    print(headline_text(summary, run_dir / "report" / "report.html"), flush=True)


def headline_text(summary: dict[str, Any], page: Path) -> str:
    """The tables as aligned text, what they rest on, and where the page is.

    Of more than two k, intervals stand beside the first and the last alone, so that a line fits a terminal.
    """
    rows = summary["headline"]
    ks = [key for key in summary["ssd"] if key.startswith("pass@")]
    shown = ends(ks)
    columns = [text for k in ks for text in ((k, "interval") if k in shown else (k,))]
    scores = aligned([["setting", "decoding", *columns],
                      *([row["title"], row["decoding"], *_scores(row, ks, shown)] for row in rows)])  # fmt: skip
    header = [f"{summary['ssd']['title']} is ahead of", *(text for k in shown for text in (k, "interval")),
              "ahead", "behind", "tied", "sign test p"]  # fmt: skip
    gains = aligned([header, *(_gains(row, shown) for row in rows if row["ssd_ahead_by"])])
    rule = "-" * max(map(len, [*scores, *gains]))
    n = summary["ssd"]["n"]
    basis = (
        f"per cent of {counted(n['problems'], 'problem')} x {n['samples_per_problem']} programs, the half on which "
        f"nothing was chosen; {confidence_text(summary['confidence'])} intervals,\n"
        f"differences in points, paired by problem; problems ahead, behind and tied in {ks[0]}, and "
        "the p value of that split"
    )
    warning = [summary["notice"], ""] if summary["notice"] else []
    tables = [scores[0], rule, *scores[1:], "", gains[0], rule, *gains[1:]]
    errata = [summary["errata"]["line"]] if summary["errata"]["line"] else []
    return "\n".join([*warning, *tables, "", basis, *errata, f"report: {page}"])


def _scores(row: dict[str, Any], ks: list[str], shown: tuple[str, ...]) -> list[str]:
    measured = {k: percent(Estimate.from_json(row[k])) for k in ks}
    return [text for k in ks for text in (measured[k].value, measured[k].interval)[: 2 if k in shown else 1]]


def _gains(row: dict[str, Any], shown: tuple[str, ...]) -> list[str]:
    ahead = row["ssd_ahead_by"]
    measured = [points(Estimate.from_json(ahead[k])) for k in shown]
    written = [text for gain in measured for text in (gain.value, gain.interval)]
    return [row["title"], *written, *split_cells(ahead[shown[0]]["sign_test"])]
