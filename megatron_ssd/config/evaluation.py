"""Decode grid, sandbox limits and statistics of the evaluation stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megatron_ssd.errors import require


@dataclass(frozen=True, kw_only=True)
class SandboxConfig:
    """Limits of one program run. ``bubblewrap`` isolates; ``rlimit_only`` bounds resources and isolates nothing."""

    kind: Literal["bubblewrap", "rlimit_only"] = "bubblewrap"
    cpu_seconds: float = 10.0  # of each test
    memory_mib: int = 1024
    output_mib: int = 16
    workers: int | None = None  # null: one a core


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is decoded and how it is counted.

    Base and tuned model are decoded over the same grid: ``temperatures`` x ``top_ps`` at ``top_k``. The best cell of
    each is chosen on one half of the problems and reported on the other.
    """

    num_samples: int = 10
    ks: tuple[int, ...] = (1, 5)
    temperatures: tuple[float, ...] = ()
    top_ps: tuple[float, ...] = ()
    top_k: int = 20
    max_tokens: int = 32768
    confidence: float = 0.95
    bootstrap_samples: int = 10_000
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)

    def __post_init__(self) -> None:
        require(
            bool(self.ks) and min(self.ks) >= 1 and max(self.ks) <= self.num_samples,
            f"evaluation.ks = {list(self.ks)}",
            rule=f"each k must be between 1 and evaluation.num_samples ({self.num_samples})",
            fix="raise evaluation.num_samples or drop the larger k",
        )
        require(0 < self.confidence < 1, f"evaluation.confidence = {self.confidence}", rule="must be in (0, 1)",
                fix="use 0.95")  # fmt: skip
