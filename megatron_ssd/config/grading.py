"""Settings of ``tools/grade.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.config.problems import BenchmarkSetConfig, ErrataChoice
from megatron_ssd.errors import require, shown

GradeFormat = Literal["lcb", "humaneval", "mbpp", "leetcode", "humaneval_plus", "mbpp_plus"]


@dataclass(frozen=True, kw_only=True)
class GradeConfig:
    """What ``tools/grade.py`` does: grade completions of any origin against a benchmark's file."""

    problems: str
    """The benchmark's file; for lcb also a folder of JSONL files or a Hub id."""
    format: GradeFormat
    """Format of the benchmark."""
    samples: str
    """JSONL file, also gzipped: question_id, task_id or problem_id, and completion, response, code or solution."""
    out: str
    """Folder for verdicts.jsonl, summary.json and manifest.json."""
    start_date: str | None = None
    """lcb: first contest date of the window, such as 2025-02-01."""
    end_date: str | None = None
    """lcb: last contest date of the window."""
    errata: ErrataChoice = BenchmarkSetConfig.errata
    """lcb: ``keep`` counts the flawed problems that LiveCodeBench's authors name, ``drop`` leaves them out."""
    cpu_seconds: float | None = SandboxConfig.cpu_seconds
    """CPU time per test; null means the benchmark's own limit."""
    memory_mib: int | None = SandboxConfig.memory_mib
    """Address space per program; null means the benchmark's own limit."""
    output_mib: int = SandboxConfig.output_mib
    """Output per program."""
    workers: int | None = SandboxConfig.workers
    """Programs at a time; null means one per core."""
    sandbox: Literal["bubblewrap", "rlimit_only"] = SandboxConfig.kind
    """``bubblewrap``, or ``rlimit_only``, which isolates nothing."""
    stop_at_first_failure: bool = SandboxConfig.stop_at_first_failure
    """False runs every test of every program."""
    tolerance: float = SandboxConfig.tolerance
    """Relative tolerance for numbers. 0 compares exactly, as LiveCodeBench does."""
    packages: tuple[str, ...] = SandboxConfig.packages
    """Packages that programs and checks may import besides the standard library, such as [numpy,sortedcontainers]."""
    prelude: Literal["lcb", "none"] | None = SandboxConfig.prelude
    """``lcb``, the names that LiveCodeBench's checker puts before a program, or ``none``; null means the benchmark's
    own."""
    replace: bool = False
    """Move aside what another command left at ``out``."""

    def __post_init__(self) -> None:
        window = self.start_date or self.end_date
        require(self.format == "lcb" or not window,
                f"start_date = {shown(self.start_date)}, end_date = {shown(self.end_date)}",
                rule="select by contest date, which only format=lcb has", fix="leave them out")  # fmt: skip
        require(self.format == "lcb" or self.errata == "keep", f"errata = {self.errata}",
                rule="only format=lcb has errata", fix="leave it out")  # fmt: skip
        require(not self.format.endswith("_plus") or "numpy" in self.packages, f"packages = {list(self.packages)}",
                rule=f"must name numpy, which the checks of {self.format} import", fix="add it")  # fmt: skip
        _ = self.sandbox_config

    @property
    def sandbox_config(self) -> SandboxConfig:
        """The keys of the sandbox as a section."""
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
