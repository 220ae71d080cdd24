"""Rows in LiveCodeBench's format, and a benchmark of such rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_ssd.config.build import build
from megatron_ssd.config.run import RunConfig
from megatron_ssd.problems.source import load_benchmark
from megatron_ssd.schema import Problem


def benchmark(path: Path, **settings: Any) -> list[Problem]:
    config = build(RunConfig, {"benchmark": {"name": "livecodebench", "path": str(path), **settings}})
    assert config.benchmark is not None
    return load_benchmark(config.benchmark, config.minicode)


def lcb_row(number: int, date: str = "2025-02-03", **changes: Any) -> dict[str, Any]:
    stdin = json.dumps([{"input": f"{number}\n", "output": "ok\n", "testtype": "stdin"}])
    row = {
        "question_title": f"Title {number}",
        "question_content": "Say ok.",
        "platform": "atcoder",
        "question_id": f"abc_{number}",
        "contest_id": "abc",
        "contest_date": f"{date}T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": stdin,
        "private_test_cases": "[]",
        "metadata": "{}",
    }
    return {**row, **changes}


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
