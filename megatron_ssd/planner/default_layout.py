"""Chooses a layout for a model from its size and the GPUs that there are.

Of the layouts whose predicted memory fits, the first one counts, in the order of what splitting costs: data parallelism
alone, then context, expert, tensor and pipeline parallelism. If none fits, activations are recomputed. Then the micro
batch is doubled as long as it fits.

Does not need torch.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.errors import ConfigError
from megatron_ssd.planner.layout import count_layout
from megatron_ssd.planner.memory import GB, worst_rank
from megatron_ssd.planner.plan import layout_name, recompute_modes, recompute_name

_SIZES = (1, 2, 4, 8)  # of each kind of parallelism; larger ones leave a node of eight GPUs
_EXPERT_SIZES = (*_SIZES, 16, 32, 64)  # experts are split further, because their optimizer state is the largest part


@dataclass(frozen=True)
class Choice:
    """A configuration with its layout, and the predicted memory of the GPU that needs the most, in bytes."""

    config: RunConfig
    memory: float

    @property
    def overrides(self) -> list[str]:
        """The layout as overrides of the command line."""
        precision = self.config.precision
        values = {f"parallel.{key}": value for key, value in dataclasses.asdict(self.config.parallel).items()}
        values["training.micro_batch_size"] = self.config.training.micro_batch_size
        values["precision.recompute"] = precision.recompute
        values["precision.recompute_modules"] = f"[{','.join(precision.recompute_modules)}]"
        return [f"{key}={'null' if value is None else value}" for key, value in values.items()]

    def changes(self, config: RunConfig) -> str:
        """The overrides that make this configuration of ``config``, as they are typed."""
        given = Choice(config, 0.0).overrides
        return " ".join(override for override in self.overrides if override not in given)

    def __str__(self) -> str:
        config = self.config
        return (
            f"{layout_name(config.parallel)}, micro batches of {config.training.micro_batch_size}, recompute "
            f"{recompute_name(config.precision)}, predicted memory {self.memory / GB:.1f} GB"
        )


def choose_layout(config: RunConfig, *, num_gpus: int, gpu_bytes: float, keep_micro_batch: bool = False) -> Choice:
    """The layout of ``config`` for ``num_gpus`` GPUs of ``gpu_bytes`` each.

    If the model fits in none, the result is the one that needs the least memory. It uses fewer GPUs if their number
    does not divide the work.

    Raises:
        ConfigError: no layout is possible, not even on one GPU.
    """
    for world_size in range(num_gpus, 0, -1):
        choices = list(_choices(config, world_size))
        if choices:
            fitting = (choice for choice in choices if choice.memory <= gpu_bytes)
            best = next(fitting, min(choices, key=_memory))
            return best if keep_micro_batch else _with_larger_micro_batch(best, gpu_bytes)
    raise ConfigError(f"training.global_batch_size = {config.training.global_batch_size}",
                      rule="no layout is possible", fix="choose one with parallel=NAME")  # fmt: skip


def ranked_layouts(config: RunConfig, *, num_gpus: int, gpu_bytes: float) -> list[Choice]:
    """Every layout of ``config`` on exactly ``num_gpus`` GPUs that fits, the one that ``choose_layout`` prefers first.

    Each has the least recomputation with which it fits.
    """
    fitting: dict[ParallelConfig, Choice] = {}
    for choice in _choices(config, num_gpus):
        if choice.memory <= gpu_bytes:
            fitting.setdefault(choice.config.parallel, choice)
    return list(fitting.values())


def _choices(config: RunConfig, world_size: int) -> Iterator[Choice]:
    """Every layout with every useful recompute mode, the cheapest first; only with the mode that is set, if one is."""
    precision, modes = config.precision, [config.precision]
    if precision.recompute == "none":
        modes = recompute_modes(needed(config.model, "model"), precision, grouped_gemm=config.moe.grouped_gemm)
    for mode in modes:
        yield from _layouts(dataclasses.replace(config, precision=mode), world_size)


def _layouts(config: RunConfig, world_size: int) -> Iterator[Choice]:
    """Every possible layout on exactly ``world_size`` GPUs, from the cheapest to the most expensive split."""
    model = needed(config.model, "model")
    for pp, tp, ep, cp in itertools.product(_SIZES, _SIZES, _EXPERT_SIZES if model.is_moe else (1,), _SIZES):
        try:
            parallel = ParallelConfig(
                world_size=world_size,
                tensor_model_parallel_size=tp,
                pipeline_model_parallel_size=pp,
                context_parallel_size=cp,
                expert_model_parallel_size=ep,
                expert_tensor_parallel_size=tp if model.is_moe and ep == 1 else 1,
                sequence_parallel=tp > 1,
            )
            yield _with_memory(dataclasses.replace(config, parallel=parallel))
        except ConfigError:
            continue  # this model or batch cannot be split so


def _with_larger_micro_batch(choice: Choice, gpu_bytes: float) -> Choice:
    """``choice`` with the largest power of two as micro batch that fits and divides the global batch."""
    training = choice.config.training
    if training.num_microbatches(choice.config.parallel.data_parallel_size) < 2 * training.micro_batch_size:
        return choice  # with packing nothing has to divide the batch, and more than all of it is of no use
    larger = dataclasses.replace(training, micro_batch_size=2 * training.micro_batch_size)
    try:
        doubled = _with_memory(dataclasses.replace(choice.config, training=larger))
    except ConfigError:
        return choice
    return _with_larger_micro_batch(doubled, gpu_bytes) if doubled.memory <= gpu_bytes else choice


def _with_memory(config: RunConfig) -> Choice:
    layout = count_layout(needed(config.model, "model"), config.parallel)
    return Choice(config, worst_rank(config, layout).total)


def _memory(choice: Choice) -> float:
    return choice.memory
