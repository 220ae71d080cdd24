"""Rows of the report's table of general benchmarks, from ``general_benchmarks/summary.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ssd.errors import UserError
from megatron_ssd.evaluation.results import from_json
from megatron_ssd.grading.metrics import Estimate
from megatron_ssd.report.formatting import UNKNOWN, Measured, points

FOLDER = "general_benchmarks"


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """One metric of one task, written out: value with standard error of each model, and the difference in points."""

    task: str
    metric: str
    num_rows: int
    rows_on_hub: int | None  # where that is known, and differs
    num_fewshot: int
    base: Measured
    ssd: Measured
    difference: Measured


def read_benchmarks(run_dir: Path) -> tuple[BenchmarkRow, ...]:
    """The rows of the run's general-benchmarks stage; none where it was not run.

    Raises:
        UserError: the file lacks something that the report shows.
    """
    path = run_dir / FOLDER / "summary.json"
    if not path.is_file():
        return ()
    try:
        return tuple(_row(row) for row in json.loads(path.read_text(encoding="utf-8"))["results"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"file {path}",
            rule=f"is no summary of this version ({type(error).__name__}: {error})",
            fix="run launch/general_benchmarks.py again with replace=true",
        ) from None


def _row(row: dict[str, Any]) -> BenchmarkRow:
    models = [row[model] for model in ("base", "ssd") if model in row]
    num_rows = models[0]["rows"]
    return BenchmarkRow(
        task=row["task"],
        metric=row["metric"] if row["filter"] == "none" else f"{row['metric']} ({row['filter']})",
        num_rows=num_rows,
        rows_on_hub=None if row["rows_on_hub"] == num_rows else row["rows_on_hub"],
        num_fewshot=row["num_fewshot"],
        base=_value(row.get("base")),
        ssd=_value(row.get("ssd")),
        difference=UNKNOWN if row["difference"] is None else points(from_json(json.dumps(row["difference"]), Estimate)),
    )


def _value(found: dict[str, float | None] | None) -> Measured:
    if found is None or found["value"] is None:
        return UNKNOWN
    stderr = found["stderr"]
    return Measured(
        value=f"{found['value'] * 100:.1f}",
        interval="standard error unknown" if stderr is None else f"\N{PLUS-MINUS SIGN} {stderr * 100:.1f}",
    )
