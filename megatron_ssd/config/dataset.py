"""What is dropped from the samples before training."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ssd.errors import require


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """The paper's minimal filters: empty responses and one-line stubs. No response is run or checked for truth."""

    drop_empty: bool = True
    drop_one_line_stubs: bool = True
    drop_shortest_fraction: float = 0.0  # the authors' code drops the shortest tenth by characters; the paper does not

    def __post_init__(self) -> None:
        require(0 <= self.drop_shortest_fraction < 1, f"filters.drop_shortest_fraction = {self.drop_shortest_fraction}",
                rule="must be in [0, 1)", fix="0.1 is what the authors' code does, 0 what the paper says")  # fmt: skip
