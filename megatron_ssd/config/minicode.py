"""The procedural programming world that the demo lives in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MinicodeConfig:
    """Size, seed and noise of the world. See ``megatron_ssd/problems/minicode``."""

    seed: int = 0
    num_train_problems: int = 6000
    num_test_problems: int = 300
    num_documents: int = 100_000  # of the base model's corpus
    tests_per_problem: int = 10
    noise: float = 1.0  # scale of the distractor process at locks
