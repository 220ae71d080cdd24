"""Rows of the report's table of general benchmarks, from ``general_benchmarks/summary.json``."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from megatron_ssd.errors import UserError
from megatron_ssd.evaluation.results import from_json
from megatron_ssd.general_benchmarks.results import NAME, SUMMARY, BenchmarkResults, MetricResult, ModelValue
from megatron_ssd.report.formatting import UNKNOWN, Measured, points

log = logging.getLogger(__name__)

_OLD_NAME = "regression"  # the folder of the stage in earlier versions


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """One metric of one task as text: value with standard error of each model, and the difference in points."""

    task: str
    metric: str
    num_rows: int
    rows_on_hub: int | None  # if it is known and differs
    num_fewshot: int
    base: Measured
    ssd: Measured
    difference: Measured


def read_benchmarks(run_dir: Path) -> tuple[BenchmarkRow, ...]:
    """The rows of the table; empty if the stage was not run.

    Raises:
        UserError: the file is from another version.
    """
    path, old = run_dir / NAME / SUMMARY, run_dir / _OLD_NAME
    if old.is_dir():
        log.warning("report: %s is from an older version and is not shown; run launch/general_benchmarks.py to measure "
                    "again, then remove it", old)  # fmt: skip
    if not path.is_file():
        return ()
    try:
        results = from_json(path.read_text(encoding="utf-8"), BenchmarkResults)
    except ValueError as error:
        raise UserError(
            f"file {path}",
            rule=f"is not a summary of this version ({error})",
            fix=f"rename {path.parent} and run launch/general_benchmarks.py again",
        ) from None
    return tuple(_row(result) for result in results.results)


def _row(result: MetricResult) -> BenchmarkRow:
    return BenchmarkRow(
        task=result.task,
        metric=result.title,
        num_rows=result.rows,
        rows_on_hub=None if result.rows_on_hub == result.rows else result.rows_on_hub,
        num_fewshot=result.num_fewshot,
        base=_value(result.base),
        ssd=_value(result.ssd),
        difference=UNKNOWN if result.difference is None else points(result.difference),
    )


def _value(found: ModelValue | None) -> Measured:
    if found is None:
        return UNKNOWN
    return Measured(
        value=f"{found.value * 100:.1f}",
        interval="standard error unknown" if found.stderr is None else f"\N{PLUS-MINUS SIGN} {found.stderr * 100:.1f}",
    )
