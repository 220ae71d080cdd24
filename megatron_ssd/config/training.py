"""Optimizer, schedule, batch, loss and checkpoints of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_ssd.errors import require


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay from ``lr`` to ``min_lr`` over the whole run.

    ``precision_aware`` keeps the optimizer's state in the ``*_dtype`` given here and needs TransformerEngine and
    ``parallel.use_distributed_optimizer``; without it everything is fp32. ``cpu_offload_fraction`` of the state lives
    in host memory.
    """

    lr: float = 5e-6
    min_lr: float = 1e-6
    lr_warmup_iters: int = 250
    weight_decay: float = 0.1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    clip_grad: float = 1.0
    precision_aware: bool = False
    main_params_dtype: Literal["fp32", "fp16"] = "fp32"
    main_grads_dtype: Literal["fp32", "bf16"] = "fp32"
    exp_avg_dtype: Literal["fp32", "bf16", "fp16", "fp8"] = "fp32"
    exp_avg_sq_dtype: Literal["fp32", "bf16", "fp16", "fp8"] = "fp32"
    cpu_offload_fraction: float = 0.0

    def __post_init__(self) -> None:
        require(self.lr > 0, f"optimizer.lr = {self.lr}", rule="must be positive", fix="the paper's peak is 5e-6")
        require(0 <= self.min_lr <= self.lr, f"optimizer.min_lr = {self.min_lr}",
                rule=f"must be between 0 and optimizer.lr ({self.lr})", fix="lower optimizer.min_lr")  # fmt: skip
        require(self.clip_grad > 0, f"optimizer.clip_grad = {self.clip_grad}", rule="must be positive",
                fix="use a large number for no clipping")  # fmt: skip
        require(0 <= self.cpu_offload_fraction <= 1, f"optimizer.cpu_offload_fraction = {self.cpu_offload_fraction}",
                rule="must be in [0, 1]", fix="0 keeps the state on the device, 1 moves all of it")  # fmt: skip
        for key in ("main_params_dtype", "main_grads_dtype", "exp_avg_dtype", "exp_avg_sq_dtype"):
            value = getattr(self, key)
            require(value == "fp32" or self.precision_aware, f"optimizer.{key} = {value}",
                    rule="needs optimizer.precision_aware = true", fix="set it, or leave the type at fp32")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state is saved, and what is kept of it.

    ``keep_last`` of null keeps every checkpoint; ``keep_every`` keeps, beside the newest, each iteration that is a
    multiple of it. ``save_async`` writes while training goes on. ``on_broken=previous`` goes on from the checkpoint
    before one that is broken, which is an error otherwise.
    """

    save_interval: int = 250
    save_async: bool = False
    keep_last: int | None = None
    keep_every: int | None = None
    on_broken: Literal["error", "previous"] = "error"

    def __post_init__(self) -> None:
        for key in ("save_interval", "keep_last", "keep_every"):
            value = getattr(self, key)
            require(value is None or value > 0, f"checkpoint.{key} = {value}", rule="must be at least 1",
                    fix="use a positive number")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The loop. One iteration is one optimizer step over ``global_batch_size`` rows of ``seq_length`` tokens.

    ``packing=none`` gives each sample a row of its own. ``greedy`` puts whole samples together into a row, each blind
    to its neighbours, in random company; ``best_fit`` sorts by length first and fills rows better. Samples longer than
    ``seq_length`` follow ``overlong``. The place of a sample in a packed row is rounded up to ``segment_multiple``;
    null means what context parallelism needs, so that its size decides which samples share a row.

    ``loss_normalization=token`` weighs every response token of the global batch alike, ``sequence`` every sample.
    ``prompt_loss_weight`` is what a prompt token weighs beside a response token. ``validation_fraction`` of the samples
    is held out and measured every ``validation_interval`` iterations.

    An iteration whose loss or gradient is not finite is skipped; ``max_skipped`` of them in a row stop the run. A loss
    above ``spike_factor`` times its running mean is reported.
    """

    train_iters: int = 2500
    global_batch_size: int = 32
    micro_batch_size: int = 1
    seq_length: int = 65536
    packing: Literal["none", "greedy", "best_fit"] = "none"
    overlong: Literal["drop", "truncate", "error"] = "drop"
    segment_multiple: int | None = None
    loss_normalization: Literal["token", "sequence"] = "token"
    prompt_loss_weight: float = 0.0
    ema_decay: float | None = None  # of a running mean of the weights, saved beside them
    validation_fraction: float = 0.0
    validation_interval: int = 250
    max_skipped: int = 10
    spike_factor: float = 2.0
    self_test: bool = True  # packed loss against the same samples one by one, before the first iteration
    log_interval: int = 1
    tensorboard: bool = True
    wandb_project: str | None = None

    def __post_init__(self) -> None:
        for key in ("train_iters", "global_batch_size", "micro_batch_size", "seq_length", "validation_interval",
                    "max_skipped", "log_interval"):  # fmt: skip
            value = getattr(self, key)
            require(value > 0, f"training.{key} = {value}", rule="must be at least 1", fix="use a positive number")
        multiple = self.segment_multiple
        require(multiple is None or (multiple > 0 and self.seq_length % multiple == 0),
                f"training.segment_multiple = {multiple}",
                rule=f"must be positive and divide training.seq_length ({self.seq_length})",
                fix="use a power of two, or null")  # fmt: skip
        require(0 <= self.prompt_loss_weight <= 1, f"training.prompt_loss_weight = {self.prompt_loss_weight}",
                rule="must be in [0, 1]", fix="0 trains on responses alone, as the paper does")  # fmt: skip
        require(0 <= self.validation_fraction < 1, f"training.validation_fraction = {self.validation_fraction}",
                rule="must be in [0, 1)", fix="0 holds nothing out")  # fmt: skip
        require(self.ema_decay is None or 0 < self.ema_decay < 1, f"training.ema_decay = {self.ema_decay}",
                rule="must be between 0 and 1", fix="0.999 is a usual value; null keeps no mean")  # fmt: skip
        require(self.spike_factor > 1, f"training.spike_factor = {self.spike_factor}", rule="must be above 1",
                fix="2 reports a loss of twice the running mean")  # fmt: skip

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
