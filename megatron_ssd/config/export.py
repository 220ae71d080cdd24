"""How the exported weights are cut into files."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ssd.errors import require


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """A file holds at most ``max_shard_bytes`` of weights, or one weight that is larger; 5 GB is the Hub's custom."""

    max_shard_bytes: int = 5_000_000_000

    def __post_init__(self) -> None:
        require(self.max_shard_bytes > 0, f"export.max_shard_bytes = {self.max_shard_bytes}", rule="must be positive",
                fix="use 5000000000")  # fmt: skip
