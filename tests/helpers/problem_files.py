"""Small data sets for the stage that chooses problems."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from megatron_ssd.artifacts.jsonl import read_jsonl
from megatron_ssd.artifacts.manifest import Manifest, read_manifest
from megatron_ssd.config.build import build
from megatron_ssd.config.run import RunConfig
from megatron_ssd.problems.stage import read_problems, run_problems
from megatron_ssd.schema import Problem
from tests.helpers.jsonl import write_jsonl

COLUMNS = {"statement": "text", "id": "name", "starter_code": "starter", "passed": "ok"}


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The output of the stage."""

    problems: list[Problem]
    dropped: list[dict[str, Any]]
    hits: list[dict[str, Any]]
    manifest: Manifest


def config_of(
    run_dir: Path, path: Path, *, contamination: Any = None, benchmark: Any = None, **problems: Any
) -> RunConfig:
    """A configuration that reads ``path``, which has rStar-Coder's columns unless ``problems`` names others."""
    values = {
        "run_dir": str(run_dir),
        "problems": {"name": "rstar_coder", "path": str(path), **problems},
        "contamination": contamination,
        "benchmark": benchmark,
    }
    return build(RunConfig, {key: value for key, value in values.items() if value is not None})


def choose(config: RunConfig) -> Chosen:
    """Run the stage and read what it published."""
    run_problems(config)
    folder = Path(config.run_dir) / "problems"
    return Chosen(
        problems=list(read_problems(Path(config.run_dir))),
        dropped=read_jsonl(folder / "dropped.jsonl"),
        hits=read_jsonl(folder / "contamination.jsonl"),
        manifest=read_manifest(folder),
    )


def rstar_row(number: int, question: str | None, starter_code: str | None = None, **more: Any) -> dict[str, Any]:
    """A row in rStar-Coder's columns."""
    row = {"question_id": f"seed_{number}", "question": question, "starter_code": starter_code, "response": "unread"}
    return {**row, "is_passed": True, **more}


def row(text: Any, **more: Any) -> dict[str, Any]:
    """A row in ``COLUMNS``."""
    return {"text": text, "name": f"p{abs(hash(str(text))) % 10**6}", "starter": None, "ok": True, **more}


def evaluation_set(path: Path, text: str) -> dict[str, Any]:
    """Write a set with one problem to ``path``; returns ``contamination.sets`` with it, under the name ``mine``."""
    return {"mine": {"path": str(write_jsonl(path, [{"text": text}])), "columns": ["text"]}}


def parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A folder with one parquet file of ``rows``."""
    folder.mkdir(exist_ok=True, parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data-00000-of-00001.parquet")
    return folder
