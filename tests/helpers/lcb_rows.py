"""Rows of benchmarks in LiveCodeBench's format."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

from megatron_ssd.config.build import build
from megatron_ssd.config.run import RunConfig
from megatron_ssd.problems.benchmarks import load_problems
from megatron_ssd.schema import Problem


def benchmark(path: Path, **settings: Any) -> list[Problem]:
    """The problems in the file or folder ``path``; ``settings`` are further keys of the benchmark."""
    config = build(RunConfig, {"benchmark": lcb_section(path, **settings)})
    assert config.benchmark is not None
    return load_problems("livecodebench", config.benchmark.sets["livecodebench"], config.minicode)


def lcb_section(path: Path, **settings: Any) -> dict[str, Any]:
    """The section ``benchmark`` for the file or folder ``path``."""
    return {"sets": {"livecodebench": {"format": "livecodebench", "path": str(path), **settings}}}


def lcb_row(number: int, date: str = "2025-02-03", **changes: Any) -> dict[str, Any]:
    """The row of a problem whose programs read a number and print ok."""
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


def encode_tests(value: Any) -> str:
    """``value`` in the encoding of LiveCodeBench's hidden tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(value, protocol=4))).decode()
