"""Writes programs in evalplus's format, so that anybody can grade them with evalplus itself.

A line has ``task_id`` and ``solution``, the complete program. Several lines of a task are its samples in their order. A
response without a program has an empty solution, since evalplus asks for every task.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.evaluation.results import ModelName
from megatron_ssd.schema import Sample

EVALPLUS_IDS = {"humaneval": "HumanEval/", "humaneval_plus": "HumanEval/", "mbpp_plus": "Mbpp/"}
"""Format -> how evalplus's ids of its tasks begin."""


def solution_path(folder: Path, name: ModelName, setting: SamplingParams) -> Path:
    """The file of one model under one setting, in the ``folder`` of a benchmark."""
    return folder / "solutions" / name / f"{setting.label}.jsonl"


def write_solutions(path: Path, format_: str, samples: Sequence[Sample], programs: Sequence[str | None]) -> None:
    """Write the programs of ``samples``, None for a response without one. ``format_`` is one of ``EVALPLUS_IDS``."""
    start = EVALPLUS_IDS[format_]
    lines = [
        json.dumps({"task_id": start + sample.problem_id.removeprefix(start), "solution": program or ""}) + "\n"
        for sample, program in zip(samples, programs, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(lines))
