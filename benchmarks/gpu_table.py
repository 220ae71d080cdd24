"""Writes the tables of docs/results/gpu.md from the raw results beside it.

    python -m benchmarks.gpu_table

A file ``gpu.json`` of ``benchmarks/gpu.sh`` gets a table when it is copied to ``docs/results/raw/`` under a new name.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.gpu_results import ALL_TESTS, Record, described, gap, outcome, parts_in

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "results" / "gpu.md"
RAW = DOCUMENT.parent / "raw"
_BEGIN, _END = "<!-- measured: python -m benchmarks.gpu_table -->", "<!-- end of measured -->"
_COLUMNS = ("part", "run", "tokens/s", "TFLOP/s", "MFU", "peak GB", "planned GB", "GPU busy", "against Transformers",
            "last loss against bf16", "result")  # fmt: skip
_STEPS_BEFORE = 2  # profiled steps in results that do not say how many


def main() -> None:
    """Write the tables to the document."""
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(document: str) -> str:
    """``document`` with the tables of all raw results between its marks."""
    head, _, rest = document.partition(_BEGIN)
    _, closed, tail = rest.partition(_END)
    assert closed, f"{DOCUMENT.name} has no marks"
    paths = sorted(RAW.glob("*.json"))
    tables = "\n\n".join(table(path.name, json.loads(path.read_text(encoding="utf-8"))) for path in paths)
    return f"{head}{_BEGIN}\n{tables}\n{_END}{tail}"


def table(name: str, content: dict[str, Any]) -> str:
    """The results of one file. A part of tests has one line, with its failures; empty columns are left out."""
    rows = []
    for part, records in parts_in(content).items():
        shown = [
            one for one in records if "tokens_per_second" in one or "passed" not in one or one["case"] == ALL_TESTS
        ]
        rows += [_cells(part, record, records) for record in shown]
    columns = [column for column in _COLUMNS if any(row.get(column) for row in rows)]
    lines = [columns, ["---"] * 2 + ["---:"] * (len(columns) - 2), *([row.get(c, "") for c in columns] for row in rows)]
    return "\n".join([f"{described(content)} ([raw](raw/{name})):", "", *(f"| {' | '.join(line)} |" for line in lines)])


def _cells(part: str, record: Record, records: list[Record]) -> dict[str, str]:
    """The cells of a record by column."""
    cells = {"part": part, "run": record["case"], "result": outcome(record) or ""}
    if cells["result"]:
        return cells
    cells |= {"tokens/s": f"{record['tokens_per_second']:,.0f}", "TFLOP/s": f"{record['tflops']:.0f}"}
    shares = {"MFU": record.get("mfu"), "GPU busy": _busy(record)}
    cells |= {column: f"{share:.1%}" for column, share in shares.items() if share is not None}
    sizes = {"peak GB": record.get("peak_gb"), "planned GB": record.get("predicted_gb")}
    cells |= {column: f"{size:.1f}" for column, size in sizes.items() if size is not None}
    reference = _reference(record, records)
    if reference is not None:
        cells["against Transformers"] = f"{record['tokens_per_second'] / reference['tokens_per_second']:.2f} x"
    apart = gap(record, records) if part == "fp8" else None
    if apart is not None:
        cells["last loss against bf16"] = f"{apart[1]:.2%}"
    return cells


def _busy(record: Record) -> float | None:
    """Seconds of the GPU's kernels in a profiled step, as a share of a step that is not profiled."""
    profile = record.get("profile")
    if profile is None:
        return None
    return float(profile["gpu_busy"] / profile.get("steps", _STEPS_BEFORE) / statistics.median(record["step_seconds"]))


def _reference(record: Record, records: list[Record]) -> Record | None:
    """The run of Transformers with the same model; it has no planned memory. None for that run itself."""
    model = record["case"].split()[0]
    same = [one for one in records if one["case"].split()[0] == model and "tokens_per_second" in one]
    found = next((one for one in same if "predicted_gb" not in one), None)
    return None if found is record else found


if __name__ == "__main__":
    main()
