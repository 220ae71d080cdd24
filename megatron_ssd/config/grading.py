"""The settings of ``tools/grade.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.config.problems import BenchmarkConfig, ErrataChoice
from megatron_ssd.errors import require, shown

GradeFormat = Literal["lcb", "humaneval", "mbpp", "leetcode", "humaneval_plus", "mbpp_plus"]


@dataclass(frozen=True, kw_only=True)
class GradeConfig:
    """Completions of any origin, graded against a benchmark's file.

    Args:
        problems: the benchmark's file (lcb: a folder of JSONL files or a Hub id as well).
        format: lcb, humaneval, mbpp, leetcode, humaneval_plus or mbpp_plus.
        samples: JSONL rows with question_id, task_id or problem_id, and completion, code or response.
        out: the folder of verdicts.jsonl, summary.json and manifest.json.
        start_date: lcb: the first contest date of the window, as 2025-02-01.
        end_date: lcb: the last one.
        errata: lcb: keep counts the flawed problems that LiveCodeBench's authors name, drop leaves them out.
        cpu_seconds: CPU time of each test.
        memory_mib: address space of a program.
        output_mib: output of a program.
        workers: programs at a time; one a core unless set.
        sandbox: bubblewrap, or rlimit_only, which isolates nothing.
        stop_at_first_failure: false runs every test of every program.
        tolerance: 0 compares numbers exactly, as LiveCodeBench does.
        packages: what programs and checks may import beside the standard library, as [numpy,sortedcontainers].
        prelude: lcb, the names that LiveCodeBench's checker puts before a program, or none, as plain Python.
        replace: move aside what another command left at out.
    """

    problems: str
    format: GradeFormat
    samples: str
    out: str
    start_date: str | None = None
    end_date: str | None = None
    errata: ErrataChoice = BenchmarkConfig.errata
    cpu_seconds: float = SandboxConfig.cpu_seconds
    memory_mib: int = SandboxConfig.memory_mib
    output_mib: int = SandboxConfig.output_mib
    workers: int | None = SandboxConfig.workers
    sandbox: Literal["bubblewrap", "rlimit_only"] = SandboxConfig.kind
    stop_at_first_failure: bool = SandboxConfig.stop_at_first_failure
    tolerance: float = SandboxConfig.tolerance
    packages: tuple[str, ...] = SandboxConfig.packages
    prelude: Literal["lcb", "none"] = SandboxConfig.prelude
    replace: bool = False

    def __post_init__(self) -> None:
        window = self.start_date or self.end_date
        require(self.format == "lcb" or not window,
                f"start_date = {shown(self.start_date)}, end_date = {shown(self.end_date)}",
                rule="cut a window of contest dates, which only format=lcb has", fix="leave them out")  # fmt: skip
        require(self.format == "lcb" or self.errata == "keep", f"errata = {self.errata}",
                rule="only format=lcb has errata", fix="leave it out")  # fmt: skip
        require(not self.format.endswith("_plus") or "numpy" in self.packages, f"packages = {list(self.packages)}",
                rule=f"must name numpy, which the checks of {self.format} import", fix="add it")  # fmt: skip
        _ = self.sandbox_config

    @property
    def sandbox_config(self) -> SandboxConfig:
        """The same for a judge."""
        return SandboxConfig(
            kind=self.sandbox,
            cpu_seconds=self.cpu_seconds,
            memory_mib=self.memory_mib,
            output_mib=self.output_mib,
            workers=self.workers,
            stop_at_first_failure=self.stop_at_first_failure,
            tolerance=self.tolerance,
            packages=self.packages,
            prelude=self.prelude,
        )
