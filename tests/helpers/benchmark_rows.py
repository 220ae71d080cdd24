"""Rows of real benchmarks in the columns of the Hub."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

from tests.helpers.paths import DATA, HUMANEVAL, MBPP, needs

FILES = {
    "humaneval": HUMANEVAL,
    "mbpp": MBPP,
    "cruxeval_output": DATA / "cruxeval" / "cruxeval.jsonl",
    "aime25": DATA / "aime" / "qwen25math_aime24.jsonl",  # other problems, in the columns of aime25
    "mmlu": DATA / "mmlu" / "mmlu_sample_200.jsonl",
}

needs_data = needs(*FILES.values())
Row = dict[str, Any]


def rows_of(task: str, count: int | None = None, *, keep: Callable[[Row], bool] = lambda row: True) -> list[Row]:
    """The first rows of a benchmark for which ``keep`` returns True."""
    path = FILES[task]
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [row for row in map(json.loads, text.splitlines()) if keep(row)][:count]
