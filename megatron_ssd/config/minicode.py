"""The procedural programming world that the demo lives in."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ssd.errors import require


@dataclass(frozen=True, kw_only=True)
class MinicodeConfig:
    """Size, seed and noise of the world. See ``docs/results/minicode.md``."""

    seed: int = 0
    num_train_problems: int = 4000
    num_test_problems: int = 300
    num_documents: int = 42_000  # of the base model's corpus, about 58 tokens each
    vocab_size: int = 512
    tests_per_problem: int = 10
    noise: float = 1.0  # scale of the distractor process at locks; 0 for none

    def __post_init__(self) -> None:
        for key in ("num_train_problems", "num_test_problems", "num_documents", "tests_per_problem"):
            value = getattr(self, key)
            require(value > 0, f"minicode.{key} = {value}", rule="must be at least 1", fix="use a positive number")
        require(0 <= self.noise <= 2, f"minicode.noise = {self.noise}", rule="must be between 0 and 2",
                fix="use 1, or 0 for a corpus without slips")  # fmt: skip
