"""Runs lm-eval in processes of its own, one per engine.

A part is the share of one process in one task on one model: every ``world``-th document, starting at ``index``. It is a
JSONL file that appears only when it is complete, so a killed stage loses only the parts that were being computed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import wait
from pathlib import Path

from megatron_ssd.config.evaluation import GeneralBenchmarksConfig
from megatron_ssd.errors import UserError
from megatron_ssd.generation.vllm_engine import VllmSpec
from megatron_ssd.process import ChildDeathError, ChildProcess
from megatron_ssd.prompts.clock import RunClock

_POLL_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class HarnessSpec:
    """The task of one process.

    Args:
        engine: how to start vLLM.
        index: number of this process.
        world: number of processes that share the documents of each task.
        config: the section of the run.
        seed: the seed of the run.
        enable_thinking: for chat templates that have this switch.
        clock: the time of the run, for chat templates.
        out: folder of the parts.
    """

    engine: VllmSpec
    index: int
    world: int
    config: GeneralBenchmarksConfig
    seed: int
    enable_thinking: bool | None
    clock: RunClock
    out: Path

    def part(self, task: str) -> Path:
        """The file of this process's part of ``task``."""
        return part_path(self.out, task, self.index, self.world)


def part_path(out: Path, task: str, index: int, world: int) -> Path:
    """The file of part ``index`` of ``world``."""
    return out / f"{task}.{index}-of-{world}.jsonl"


def lm_eval_version() -> str:
    """The installed release. Raises ``UserError`` if there is none."""
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        raise UserError(
            "package lm_eval",
            rule="is not installed, and general_benchmarks.tasks are its tasks",
            fix="pip install -e '.[lm-eval]', or leave general_benchmarks.tasks empty",
        ) from None


def run_harness(specs: Sequence[HarnessSpec], *, note: Callable[[], object]) -> None:
    """Run every process to its end. Its output goes to standard error.

    Args:
        specs: one per process.
        note: called from time to time while they run.

    Raises:
        UserError: one of them reported a user error, or died. The others are killed; complete parts are kept.
    """
    with contextlib.ExitStack() as stack:
        waiting = {}
        for spec in specs:
            child = ChildProcess(
                "megatron_ssd.general_benchmarks.harness", environment=_environment(spec), stdout=sys.stderr.fileno()
            )
            stack.callback(child.close)
            child.send(spec)
            waiting[child.connection] = child
        while waiting:
            for connection in wait(list(waiting), timeout=_POLL_SECONDS):
                _finish(waiting.pop(connection))  # type: ignore[call-overload]
            note()


def _finish(child: ChildProcess) -> None:
    """Receive the result. Raises ``UserError`` if it is one, or if the process died."""
    try:
        child.receive()
    except ChildDeathError as death:
        raise UserError(
            f"lm-eval's process with status {death.status}",
            rule="died; its output is above",
            fix="run the same command again, which keeps finished tasks; lower engine.max_num_seqs if memory ran out",
        ) from None


def _environment(spec: HarnessSpec) -> dict[str, str]:
    """The environment of an engine, with downloads of data sets, and without programs of a model in libraries."""
    environment = spec.engine.environment(spec.index)
    if not set(spec.config.tasks) <= spec.config.data.keys() and "HF_HUB_OFFLINE" not in os.environ:
        del environment["HF_HUB_OFFLINE"]
    return {**environment, "HF_ALLOW_CODE_EVAL": "0", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
