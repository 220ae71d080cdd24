"""What passes between the stage and the processes in which lm-eval runs: what is asked, and the rows that come back.

A part is one process's share of one task on one model: every ``world``-th row from ``index`` on. It is a JSONL file
that appears whole, so that a killed stage loses the parts at work and no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from megatron_ssd.config.evaluation import GeneralBenchmarksConfig
from megatron_ssd.generation.vllm_engine import VllmSpec

NO_FILTER = "none"  # what lm-eval calls an answer as it is


@dataclass(frozen=True, kw_only=True)
class HarnessSpec:
    """Everything that one process is asked.

    Args:
        engine: how to start vLLM.
        index: this process among its fellows.
        world: how many share the rows of each task.
        tasks: names, in the order in which they are run.
        code_tasks: those whose answers are programs: lm-eval asks and filters, and judges nothing.
        config: see there.
        seed: the run's.
        enable_thinking: for chat templates that know it.
        out: where parts go.
    """

    engine: VllmSpec
    index: int
    world: int
    tasks: tuple[str, ...]
    code_tasks: tuple[str, ...]
    config: GeneralBenchmarksConfig
    seed: int
    enable_thinking: bool | None
    out: Path

    def part(self, task: str) -> Path:
        """The file of this process's rows of ``task``."""
        return part_path(self.out, task, self.index, self.world)


def part_path(out: Path, task: str, index: int, world: int) -> Path:
    """The file of part ``index`` of ``world``."""
    return out / f"{task}.{index}-of-{world}.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRow:
    """One row of a task as lm-eval asked, filtered and judged it.

    ``task`` is the leaf where a group was asked for. ``scores`` has each metric that is a mean over rows; of a code
    task none, but ``programs`` to run and ``ks`` of pass@k. ``answers`` are the model's own.
    """

    task: str
    doc_id: int
    filter: str
    doc: dict[str, Any]
    prompt: str
    answers: list[Any]
    scores: dict[str, float]
    programs: list[str]
    ks: list[int]
    num_fewshot: int

    @property
    def key(self) -> tuple[str, int]:
        """What makes it unique in a task: (leaf, row)."""
        return self.task, self.doc_id

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """From a line of a part."""
        return cls(**row)
