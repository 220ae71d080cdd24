"""Where problems come from: training problems, and the benchmark that a model is judged on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_ssd.errors import require


@dataclass(frozen=True, kw_only=True)
class ProblemsConfig:
    """Training problems. ``path`` is a local folder or file, or a Hub id; minicode is procedural and has none."""

    name: Literal["minicode", "rstar_coder"]
    path: str | None = None
    limit: int | None = None  # after deduplication
    deduplicate: bool = True  # exact, on white-space-normalised text

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit > 0, f"problems.limit = {self.limit}", rule="must be positive",
                fix="leave it out to use every problem")  # fmt: skip
        require(self.name == "minicode" or self.path is not None, f"problems.path = {self.path}",
                rule=f"problems={self.name} reads rows from somewhere", fix="set problems.path=FOLDER")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Evaluation problems. ``start_date`` and ``end_date`` (ISO, both included) cut a window by contest date."""

    name: Literal["minicode", "livecodebench"]
    path: str | None = None
    limit: int | None = None
    start_date: str | None = None
    end_date: str | None = None

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit > 0, f"benchmark.limit = {self.limit}", rule="must be positive",
                fix="leave it out to use every problem")  # fmt: skip
        require(self.name == "minicode" or self.path is not None, f"benchmark.path = {self.path}",
                rule=f"benchmark={self.name} reads rows from somewhere", fix="set benchmark.path=FILE")  # fmt: skip
