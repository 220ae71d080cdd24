"""A few rows of the real benchmarks, read from public data beside the checkout, in the Hub's columns."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import SHARED

DATA = SHARED / "data"
FILES = {
    "humaneval": DATA / "humaneval" / "HumanEval.jsonl.gz",
    "mbpp": DATA / "mbpp" / "mbpp.jsonl",
    "cruxeval_output": DATA / "cruxeval" / "cruxeval.jsonl",
    "aime25": DATA / "aime" / "qwen25math_aime24.jsonl",  # different problems, in the columns of that task
    "mmlu": DATA / "mmlu" / "mmlu_sample_200.jsonl",
}

needs_data = pytest.mark.skipif(
    not all(path.is_file() for path in FILES.values()), reason=f"needs {', '.join(map(str, FILES.values()))}"
)
Row = dict[str, Any]


def rows_of(task: str, count: int | None = None, *, keep: Callable[[Row], bool] = lambda row: True) -> list[Row]:
    """The first rows of a benchmark for which ``keep`` holds."""
    path = FILES[task]
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [row for row in map(json.loads, text.splitlines()) if keep(row)][:count]


def write_rows(path: Path, rows: list[Row]) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
