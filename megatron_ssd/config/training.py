"""Optimizer, schedule, batch and checkpoints of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_ssd.errors import require


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay from ``lr`` to ``min_lr`` over the whole run."""

    lr: float = 5e-6
    min_lr: float = 1e-6
    lr_warmup_iters: int = 250
    weight_decay: float = 0.1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    clip_grad: float = 1.0

    def __post_init__(self) -> None:
        require(self.lr > 0, f"optimizer.lr = {self.lr}", rule="must be positive", fix="the paper's peak is 5e-6")
        require(0 <= self.min_lr <= self.lr, f"optimizer.min_lr = {self.min_lr}",
                rule=f"must be between 0 and optimizer.lr ({self.lr})", fix="lower optimizer.min_lr")  # fmt: skip
        require(self.clip_grad > 0, f"optimizer.clip_grad = {self.clip_grad}", rule="must be positive",
                fix="use a large number for no clipping")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The loop. One iteration is one optimizer step over ``global_batch_size`` rows of ``seq_length`` tokens.

    ``packing=greedy`` puts whole samples together into a row, each blind to its neighbours; ``none`` gives each sample
    a row of its own. Samples longer than ``seq_length`` follow ``over_long``.
    """

    train_iters: int = 2500
    global_batch_size: int = 32
    micro_batch_size: int = 1
    seq_length: int = 65536
    packing: Literal["none", "greedy"] = "none"
    over_long: Literal["drop", "truncate", "error"] = "drop"
    save_interval: int = 250
    log_interval: int = 1
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for key in ("train_iters", "global_batch_size", "micro_batch_size", "seq_length", "save_interval",
                    "log_interval"):  # fmt: skip
            value = getattr(self, key)
            require(value > 0, f"training.{key} = {value}", rule="must be at least 1", fix="use a positive number")

    def num_microbatches(self, data_parallel_size: int) -> int:
        """Micro batches that each data-parallel replica runs in one iteration."""
        per_step = self.micro_batch_size * data_parallel_size
        require(
            self.global_batch_size % per_step == 0,
            f"training.global_batch_size = {self.global_batch_size}",
            rule=f"must be a multiple of micro_batch_size x data parallel size ({per_step})",
            fix=f"use a multiple of {per_step}",
        )
        return self.global_batch_size // per_step
