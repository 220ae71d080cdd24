"""Settings of training: optimizer, loop, checkpoints, export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_ssd.config.reference import require_key, require_positive
from megatron_ssd.errors import require

Weights = Literal["model", "ema"]
OptimizerFormat = Literal["dp_reshardable", "fully_reshardable"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay over the run."""

    lr: float = 5e-6
    """Peak learning rate."""
    min_lr: float = 1e-6
    """Learning rate at the end of the decay."""
    lr_warmup_iters: int = 250
    """Iterations of linear warm-up."""
    weight_decay: float = 0.1
    """Weight decay."""
    adam_beta1: float = 0.9
    """Decay rate of the first moment."""
    adam_beta2: float = 0.95
    """Decay rate of the second moment."""
    adam_eps: float = 1e-8
    """Epsilon of Adam."""
    clip_grad: float = 1.0
    """Largest norm of the gradient."""
    precision_aware: bool = False
    """Keep the optimizer's state in the types below. Needs TransformerEngine and
    ``parallel.use_distributed_optimizer``; otherwise everything is fp32."""
    main_params_dtype: Literal["fp32", "fp16"] = "fp32"
    """Type of the optimizer's copy of the weights."""
    main_grads_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the gradients that the optimizer reads."""
    exp_avg_dtype: Literal["fp32", "bf16", "fp16", "fp8"] = "fp32"
    """Type of the first moment."""
    exp_avg_sq_dtype: Literal["fp32", "bf16", "fp16", "fp8"] = "fp32"
    """Type of the second moment."""
    cpu_offload_fraction: float = 0.0
    """Fraction of the optimizer's state that is kept in host memory."""

    def __post_init__(self) -> None:
        require_positive(self, "lr", fix="the paper's peak is 5e-6")
        require_key(self, "min_lr", 0 <= self.min_lr <= self.lr, rule=f"must be between 0 and optimizer.lr ({self.lr})",
                    fix="lower optimizer.min_lr")  # fmt: skip
        require_positive(self, "clip_grad", fix="use a large number to clip nothing")
        require_key(self, "cpu_offload_fraction", 0 <= self.cpu_offload_fraction <= 1, rule="must be in [0, 1]",
                    fix="0 keeps the state on the device, 1 moves all of it")  # fmt: skip
        for key in ("main_params_dtype", "main_grads_dtype", "exp_avg_dtype", "exp_avg_sq_dtype"):
            require_key(self, key, getattr(self, key) == "fp32" or self.precision_aware,
                        rule="needs optimizer.precision_aware = true",
                        fix="set it, or leave the type at fp32")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written, and which are kept."""

    save_interval: int = 250
    """Iterations between checkpoints."""
    optimizer_format: OptimizerFormat = "dp_reshardable"
    """How the state of the distributed optimizer is written. With ``dp_reshardable`` each rank writes its own shards;
    the run can resume under other data-parallel and context-parallel sizes only. ``fully_reshardable`` can resume under
    any layout, but rank 0 of each data-parallel group first gathers the state of the group in host memory."""
    save_async: bool = False
    """Write checkpoints while training continues. What is not written before the next update, and all state on GPUs, is
    copied in host memory, which is kept for the next save."""
    keep_last: int | None = None
    """Number of newest checkpoints to keep; null keeps all."""
    keep_every: int | None = None
    """Besides the newest, keep each iteration that is a multiple of this."""
    on_broken: Literal["error", "previous"] = "error"
    """If the newest checkpoint is broken: ``error`` stops, ``previous`` resumes from the one before."""

    def __post_init__(self) -> None:
        require_positive(self, "save_interval", "keep_last", "keep_every", fix="use at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The training loop. An iteration is one optimizer step over ``global_batch_size`` samples or packed sequences."""

    train_iters: int = 2500
    """Number of iterations."""
    batch_unit: Literal["samples", "packed_sequences"] = "samples"
    """What ``global_batch_size`` counts. With ``samples`` the packed samples of an iteration are those of an unpacked
    batch, and so is the loss. With ``packed_sequences`` an epoch is packed beforehand, into full sequences."""
    global_batch_size: int = 32
    """Samples or packed sequences per iteration."""
    micro_batch_size: int = 1
    """Sequences per forward pass of a replica; see ``tokens_per_micro_batch``."""
    tokens_per_micro_batch: int | None = None
    """Most tokens of a forward pass of a replica, if ``batch_unit`` is ``samples`` and they are packed; null means
    ``seq_length`` x ``micro_batch_size``."""
    seq_length: int = 65536
    """Tokens per sequence. If it is not set, a model with a shorter context gets sequences of its context."""
    packing: Literal["none", "greedy", "best_fit"] = "best_fit"
    """``none`` gives each sample a sequence of its own, padded to the longest of its micro batch. The others put
    several samples into a sequence, each blind to the others: ``greedy`` in random order, ``best_fit`` by length,
    which wastes less."""
    overlong: Literal["drop", "truncate", "error"] = "drop"
    """Samples that are longer than ``seq_length``: drop or truncate them, or stop with an error."""
    segment_multiple: int | None = None
    """The length of a sample in a packed sequence is rounded up to a multiple of this. Null means the multiple that
    context parallelism needs; the samples that share a sequence then depend on its size."""
    loss_normalization: Literal["token", "sequence"] = "token"
    """``token`` gives every response token of the global batch the same weight, ``sequence`` every sample."""
    prompt_loss_weight: float = 0.0
    """Weight of a prompt token in the loss; a response token has 1."""
    ema_decay: float | None = None
    """Decay of an exponential moving average (EMA) of the weights, which is saved with them; null keeps none."""
    validation_fraction: float = 0.0
    """Fraction of the samples that is held out for validation."""
    validation_interval: int = 250
    """Iterations between validations."""
    max_skipped: int = 10
    """Stop after this many successive iterations without a finite loss and gradient. Such an iteration is skipped."""
    spike_factor: float = 2.0
    """Warn about a loss above this multiple of its moving average."""
    self_test: bool = True
    """Before the first iteration, compare the packed loss with that of the same samples one by one."""
    log_interval: int = 1
    """Iterations between log lines."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    wandb_project: str | None = None
    """Project in Weights & Biases; null is off."""
    gc_interval: int | None = None
    """Collect Python's garbage on all processes together, after each multiple of this many iterations. Null means 100
    on GPUs, and on a CPU when Python itself decides."""
    hang_seconds: float | None = 600.0
    """A rank whose iteration takes at least as long, and ``hang_factor`` times the mean, prints the stacks of its
    threads and ends with status 75, which a scheduler starts again. Null is off."""
    hang_factor: float = 20.0
    """See ``hang_seconds``."""
    profile_steps: tuple[int, int] | None = None
    """First and last iteration of a profile: ``run_dir/profile`` then gets a trace of the first process for Perfetto or
    Chrome. Null is off."""

    def __post_init__(self) -> None:
        require_positive(self, "train_iters", "global_batch_size", "micro_batch_size", "seq_length",
                         "validation_interval", "max_skipped", "log_interval", fix="use at least 1")  # fmt: skip
        require_positive(self, "gc_interval", fix="use 100, or null")
        require_positive(self, "hang_seconds", "hang_factor", fix="use the defaults, or hang_seconds=null")
        steps = self.profile_steps
        require_key(self, "profile_steps", steps is None or 1 <= steps[0] <= steps[1] <= self.train_iters,
                    rule=f"must be two iterations from 1 to training.train_iters ({self.train_iters}), in order",
                    fix="use [11, 12], or null")  # fmt: skip
        require_key(self, "packing", self.packing != "greedy" or self.batch_unit == "packed_sequences",
                    rule="needs training.batch_unit = packed_sequences",
                    fix="set it, or use training.packing=best_fit")  # fmt: skip
        require_key(self, "tokens_per_micro_batch", self.tokens_per_micro_batch is None or self.packs_steps,
                    rule="is only for packed samples of an iteration", fix="set training.packing=best_fit and "
                    "training.batch_unit=samples, or training.micro_batch_size instead")  # fmt: skip
        require_key(self, "tokens_per_micro_batch", self.micro_batch_tokens >= self.seq_length,
                    rule=f"must be at least training.seq_length ({self.seq_length}), the longest sample",
                    fix="raise it, or lower training.seq_length")  # fmt: skip
        multiple = self.segment_multiple
        require_key(self, "segment_multiple", multiple is None or (multiple > 0 and self.seq_length % multiple == 0),
                    rule=f"must be positive and divide training.seq_length ({self.seq_length})",
                    fix="use a power of two, or null")  # fmt: skip
        require_key(self, "prompt_loss_weight", 0 <= self.prompt_loss_weight <= 1, rule="must be in [0, 1]",
                    fix="0 trains on responses only, as the paper does")  # fmt: skip
        require_key(self, "validation_fraction", 0 <= self.validation_fraction < 1, rule="must be in [0, 1)",
                    fix="0 holds nothing out")  # fmt: skip
        require_key(self, "ema_decay", self.ema_decay is None or 0 < self.ema_decay < 1, rule="must be between 0 and 1",
                    fix="0.999 is a usual value; null keeps no average")  # fmt: skip
        require_key(self, "spike_factor", self.spike_factor > 1, rule="must be above 1",
                    fix="2 reports a loss of twice its moving average")  # fmt: skip

    @property
    def packs_steps(self) -> bool:
        """Whether the samples of each iteration are packed, and not those of an epoch."""
        return self.batch_unit == "samples" and self.packing != "none"

    @property
    def epoch_packing(self) -> Literal["none", "greedy", "best_fit"]:
        """How an epoch is packed beforehand."""
        return "none" if self.batch_unit == "samples" else self.packing

    @property
    def micro_batch_tokens(self) -> int:
        """Most tokens of a micro batch of a replica."""
        return self.tokens_per_micro_batch or self.micro_batch_size * self.seq_length

    def num_microbatches(self, data_parallel_size: int) -> int:
        """Micro batches per data parallel replica and iteration; the most that there can be if ``packs_steps``."""
        if self.packs_steps:
            return -(-self.global_batch_size // data_parallel_size)
        per_step = self.micro_batch_size * data_parallel_size
        require(
            self.global_batch_size % per_step == 0,
            f"training.global_batch_size = {self.global_batch_size}",
            rule=f"must be a multiple of micro_batch_size x data parallel size ({per_step})",
            fix=f"use a multiple of {per_step}",
        )
        return self.global_batch_size // per_step


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Which weights are exported, and in files of which size."""

    max_shard_bytes: int = 5_000_000_000
    """Most bytes of weights per file; a single larger weight gets a file of its own. 5 GB is the Hub's convention."""
    iteration: int | None = None
    """Iteration of the checkpoint; null means the newest."""
    weights: Weights = "model"
    """``model``, or ``ema``: their exponential moving average, which training keeps if ``training.ema_decay`` is
    set."""

    def __post_init__(self) -> None:
        require_positive(self, "max_shard_bytes", fix="use 5000000000")
        require_key(self, "iteration", self.iteration is None or self.iteration >= 0, rule="must not be negative",
                    fix="leave it out for the newest checkpoint")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """What ``launch/push.py`` uploads to the Hugging Face Hub."""

    what: Literal["model", "samples"] = "model"
    """``model`` is the exported model, ``samples`` are the responses that were sampled for training."""
    repo: str | None = None
    """Repository on the Hub, ``OWNER/NAME``. It is made if it does not exist."""
    private: bool = True
    """Only its owner sees the repository. One that exists already must be what this says."""
    base_model: str | None = None
    """Hub id of the base, for the card. Null means ``model.path``, if that was a Hub id when the model was
    exported."""
