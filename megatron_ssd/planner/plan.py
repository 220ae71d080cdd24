"""Describes what a run needs: memory, iterations, epochs, operations.

Memory is that of the rank that needs the most, in 10^9 bytes. Nothing here runs a model or needs a GPU.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig, RecomputeModule
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.config.training import TrainingConfig
from megatron_ssd.dataset.packing import PackingReport
from megatron_ssd.formatting import counted
from megatron_ssd.nvidia_smi import Capability
from megatron_ssd.planner.flops import flops_of
from megatron_ssd.planner.gpus import Gpu
from megatron_ssd.planner.layout import LayoutReport
from megatron_ssd.planner.memory import GB, IMBALANCE, RankMemory, worst_rank

_LABELS = {"fp8_weights": "FP8 weights", "ema": "EMA of the weights"}  # others are the names of the fields


@dataclass(frozen=True)
class Samples:
    """The training samples: how many there are, or how many sequences they fill, and their length if it is known.

    ``sequences`` are what ``training.batch_unit`` counts.
    """

    sequences: float
    described: str
    segment_length: int | None = None  # mean tokens of a sample; None for one sample per sequence

    @classmethod
    def of_dataset(cls, report: PackingReport) -> Samples:
        """The samples of a data set."""
        return cls(sequences=report.sequences, described=str(report), segment_length=report.tokens // report.samples)

    @classmethod
    def expected(cls, count: int, mean_tokens: int | None, *, packed_length: int | None) -> Samples:
        """``count`` samples that do not exist yet.

        Args:
            packed_length: length of the packed sequences of an epoch, which needs ``mean_tokens``; None if batches are
                counted in samples.
        """
        sequences = float(count)
        if packed_length is not None:
            assert mean_tokens is not None
            sequences = max(count * mean_tokens / packed_length, 1)
        return cls(sequences, f"{count:,} samples, from --samples", segment_length=mean_tokens)


def recompute_modes(model: ModelConfig, precision: PrecisionConfig, *, grouped_gemm: bool) -> list[PrecisionConfig]:
    """``precision`` under every useful recompute mode, from the fastest to the one with the least memory."""
    delayed = precision.fp8 is not None and precision.fp8.recipe == "delayed"
    fused = precision.transformer_engine
    selections: list[tuple[RecomputeModule, ...]] = [("mlp",)]
    if model.is_moe:
        norm: tuple[RecomputeModule, ...] = ("layernorm",) if fused and not delayed else ()
        selections = [(*norm, "moe_act")] if norm and grouped_gemm else []
        selections.append((*norm, "moe"))
    modes = [dataclasses.replace(precision, recompute="none")]
    modes += [
        dataclasses.replace(precision, recompute="selective", recompute_modules=modules) for modules in selections
    ]
    return [*modes, dataclasses.replace(precision, recompute="full")]


def memory_text(config: RunConfig, layout: LayoutReport) -> str:
    """The memory of the rank that needs the most, by part, and the total under other recompute modes."""
    model = needed(config.model, "model")
    memory = worst_rank(config, layout)
    lines = [
        f"{model.name}: {counted(config.parallel.world_size, 'GPU')}, {layout_name(config.parallel)}, "
        f"{numbers_name(config.precision)}, recompute {recompute_name(config.precision)}",
        "",
        "memory of the fullest GPU                GB",
    ]
    for part, value in (dataclasses.asdict(memory) | {"total": memory.total}).items():
        if value:
            lines.append(f"  {_LABELS.get(part, part.replace('_', ' ')):34s} {value / GB:8.1f}")
    lines += ["", "with recompute                           activations   working set      total   compared"]
    for precision in recompute_modes(model, config.precision, grouped_gemm=config.moe.grouped_gemm):
        other = worst_rank(dataclasses.replace(config, precision=precision), layout)
        lines.append(
            f"  {recompute_name(precision):38s} {other.activations / GB:11.1f}   {other.working_set / GB:11.1f}"
            f"   {other.total / GB:8.1f}   {_compared(model, precision, config.parallel)}"
        )
    load = f"assumes {IMBALANCE} times the mean expert load on the busiest rank; " if model.is_moe else ""
    lines += ["", f"{load}the working set and the logits are never there at once, so the total has the larger one"]
    return "\n".join(lines)


def _compared(model: ModelConfig, precision: PrecisionConfig, parallel: ParallelConfig) -> str:
    """Whether a GPU has run this kind of model in this mode; the runs are in ``docs/results/raw``."""
    known = parallel.world_size == 1 and not model.is_moe and precision.fp8 is None and precision.transformer_engine
    if not known or precision.recompute not in ("none", "full"):
        return "unmeasured"
    return "within 2 % on one H200" + (", there without the fused loss" if precision.fuses_cross_entropy else "")


def fits_text(memory: RankMemory, gpus: list[Gpu]) -> str:
    """Whether ``memory`` fits, one line per GPU."""
    lines = []
    for gpu in gpus:
        left = gpu.memory_gb - memory.total / GB
        verdict = f"fits, {left:.1f} GB left" if left >= 0 else f"does not fit, {-left:.1f} GB too many"
        lines.append(f"  {gpu.name} ({gpu.memory_gb:g} GB): {verdict}")
    return "\n".join(lines)


def run_text(config: RunConfig, samples: Samples | None) -> str:
    """Iterations, tokens, epochs and operations of the run."""
    model, training = needed(config.model, "model"), config.training
    sequences = training.train_iters * training.global_batch_size
    tokens = sequences * _mean_length(training, samples)
    lines = [
        iteration_text(training, config.parallel),
        f"the run: {training.train_iters:,} iterations, {sequences:,} {_unit(training)}, {tokens:,} tokens"
        + ("" if training.epoch_packing != "none" or (samples and samples.segment_length) else " at most")
        + f", packing {training.packing}",
    ]
    if samples is None:
        lines.append("epochs: unknown without run_dir/dataset; --samples=N gives the number of samples")
    else:
        lines.append(f"epochs: {sequences / samples.sequences:.2f} ({samples.described})")
    flops = iteration_flops(model, training, samples)
    lines.append(f"operations: {flops / 1e15:.4g} x 10^15 per iteration, forward and backward")
    return "\n".join(lines)


def iteration_text(training: TrainingConfig, parallel: ParallelConfig) -> str:
    """What one iteration consists of."""
    batch = f"per iteration: {training.global_batch_size} {_unit(training)} of "
    if training.packs_steps:
        return (
            f"{batch}at most {training.seq_length:,} tokens, packed into micro batches of at most "
            f"{training.micro_batch_tokens:,} tokens on {_replicas(parallel)}"
        )
    number = training.num_microbatches(parallel.data_parallel_size)
    micro_batches = f"{number} micro batches" if number > 1 else "one micro batch"
    return f"{batch}{training.seq_length:,} tokens, in {micro_batches} on {_replicas(parallel)}"


def _replicas(parallel: ParallelConfig) -> str:
    number = parallel.data_parallel_size
    return f"each of {number} replicas" if number > 1 else "the only replica"


def _unit(training: TrainingConfig) -> str:
    """What batches are counted in."""
    return "samples" if training.epoch_packing == "none" else "sequences"


def _mean_length(training: TrainingConfig, samples: Samples | None) -> int:
    """Tokens of a sample or of a packed sequence; ``seq_length`` if it is not known."""
    known = training.epoch_packing == "none" and samples is not None and samples.segment_length
    return min(training.seq_length, known) if known else training.seq_length


def segment_length(training: TrainingConfig, samples: Samples | None) -> int:
    """Tokens of a sample on average; ``seq_length`` if that is not known."""
    length = _mean_length(training, samples)
    return min(length, samples.segment_length) if samples and samples.segment_length else length


def iteration_flops(model: ModelConfig, training: TrainingConfig, samples: Samples | None) -> float:
    """Useful operations of one iteration, over full sequences or samples of mean length."""
    segment = segment_length(training, samples)
    segments = training.global_batch_size * _mean_length(training, samples) / segment
    return segments * flops_of(model, [segment])


def layout_name(p: ParallelConfig) -> str:
    """For example ``TP1 CP8 EP8 PP1 DP1``."""
    sizes = {"TP": p.tensor_model_parallel_size, "CP": p.context_parallel_size, "EP": p.expert_model_parallel_size,
             "PP": p.pipeline_model_parallel_size, "DP": p.data_parallel_size}  # fmt: skip
    if p.virtual_pipeline_model_parallel_size:
        sizes["VPP"] = p.virtual_pipeline_model_parallel_size
    return " ".join(f"{name}{size}" for name, size in sizes.items())


def numbers_name(precision: PrecisionConfig) -> str:
    """For example ``bf16 with FP8 mxfp8``."""
    return precision.params_dtype + (f" with FP8 {precision.fp8.recipe}" if precision.fp8 else "")


def numbers_reason(precision: PrecisionConfig, capability: Capability | None) -> str:
    """The number formats of a run and why they were chosen.

    Args:
        capability: compute capability that ``precision.auto`` has chosen for; None without a GPU.
    """
    if not precision.auto:
        return f"precision: {numbers_name(precision)}, as configured"
    if capability is None:
        why = "assumed, since no GPU is visible: capability 10 has FP8 mxfp8, and 9 has FP8 blockwise"
    else:
        why = f"chosen for compute capability {'.'.join(map(str, capability))}"
    return f"precision: {numbers_name(precision)}, {why}; precision=NAME chooses another"


def recompute_name(precision: PrecisionConfig) -> str:
    """For example ``selective (layernorm, moe)``."""
    if precision.recompute == "selective":
        return f"selective ({', '.join(precision.recompute_modules)})"
    return precision.recompute
