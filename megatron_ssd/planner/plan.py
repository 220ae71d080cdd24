"""What a run will take, in words: memory by part and by recompute mode, iterations, epochs, operations, hours.

Memory is of the fullest rank, in 10^9 bytes. Nothing here runs or needs a GPU.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.precision import PrecisionConfig, RecomputeModule
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.planner.dry_run import LayoutReport
from megatron_ssd.planner.flops import flops_of
from megatron_ssd.planner.memory import GB, IMBALANCE, RankMemory, worst_rank
from megatron_ssd.runtime.gpus import GPUS, Gpu

_PARTS = {
    "weights": "weights",
    "fp8_weights": "FP8 weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "ema": "running mean of weights",
    "activations": "activations",
    "working_set": "working set",
    "logits": "logits",
    "reserve": "reserve",
}


@dataclass(frozen=True)
class Samples:
    """The training samples: rows of an epoch, and what is known of their lengths."""

    rows: float
    described: str
    segment_length: int | None = None  # mean positions of a sample; None takes every row for one sample


def recompute_modes(model: ModelConfig, precision: PrecisionConfig, *, grouped_gemm: bool) -> list[PrecisionConfig]:
    """``precision`` under every recompute mode that is worth a line, from the fastest to the smallest."""
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


def recompute_name(precision: PrecisionConfig) -> str:
    """For example ``selective (layernorm, moe)``."""
    if precision.recompute == "selective":
        return f"selective ({', '.join(precision.recompute_modules)})"
    return precision.recompute


def numbers_name(precision: PrecisionConfig) -> str:
    """For example ``bf16 with FP8 mxfp8``."""
    return precision.params_dtype + (f" with FP8 {precision.fp8.recipe}" if precision.fp8 else "")


def memory_text(config: RunConfig, layout: LayoutReport) -> str:
    """The parts of the fullest rank, and the total under other recompute modes."""
    model = needed(config.model, "model", fix="choose one with model=NAME")
    memory = worst_rank(config, layout)
    lines = [
        f"{model.name}: {layout_name(config)}, {numbers_name(config.precision)}, "
        f"recompute {recompute_name(config.precision)}",
        "",
        "memory of the fullest GPU                GB",
    ]
    parts = {label: getattr(memory, part) for part, label in _PARTS.items()} | {"total": memory.total}
    lines += [f"  {label:34s} {value / GB:8.1f}" for label, value in parts.items() if value]
    lines += ["", "with recompute                           activations   working set      total"]
    for precision in recompute_modes(model, config.precision, grouped_gemm=config.moe.grouped_gemm):
        other = worst_rank(dataclasses.replace(config, precision=precision), layout)
        lines.append(
            f"  {recompute_name(precision):38s} {other.activations / GB:11.1f}   {other.working_set / GB:11.1f}"
            f"   {other.total / GB:8.1f}"
        )
    load = f"experts' load of {IMBALANCE} times the mean on the busiest rank assumed; " if model.is_moe else ""
    lines += ["", f"{load}predicted, not yet held against a GPU"]
    return "\n".join(lines)


def layout_name(config: RunConfig) -> str:
    """For example ``8 GPUs, TP1 CP8 EP8 PP1 DP1``."""
    p = config.parallel
    sizes = {"TP": p.tensor_model_parallel_size, "CP": p.context_parallel_size, "EP": p.expert_model_parallel_size,
             "PP": p.pipeline_model_parallel_size, "DP": p.data_parallel_size}  # fmt: skip
    if p.virtual_pipeline_model_parallel_size:
        sizes["VPP"] = p.virtual_pipeline_model_parallel_size
    return f"{p.world_size} GPUs, " + " ".join(f"{name}{size}" for name, size in sizes.items())


def fits_text(memory: RankMemory, gpus: list[Gpu]) -> str:
    """Whether ``memory`` fits, GPU by GPU."""
    lines = []
    for gpu in gpus:
        left = gpu.memory_gb - memory.total / GB
        verdict = f"fits, {left:.1f} GB left" if left >= 0 else f"does not fit, {-left:.1f} GB too many"
        lines.append(f"  {gpu.name} ({gpu.memory_gb:g} GB): {verdict}")
    return "\n".join(lines)


def fits(memory: RankMemory, gpu: str) -> bool:
    """Whether ``memory`` fits on that GPU."""
    return memory.total <= GPUS[gpu].memory_gb * GB


def run_text(config: RunConfig, samples: Samples | None) -> str:
    """Iterations, positions, epochs and operations of the whole run."""
    training = config.training
    replicas = config.parallel.data_parallel_size
    rows = training.train_iters * training.global_batch_size
    lines = [
        f"an iteration: {training.global_batch_size} rows of {training.seq_length:,} positions, in "
        f"{training.num_microbatches(replicas)} micro batches on each of {replicas} replicas",
        f"the run: {training.train_iters:,} iterations, {rows:,} rows, {rows * training.seq_length:,} positions, "
        f"packing {training.packing}",
    ]
    if samples is None:
        lines.append("epochs: not known before run_dir/dataset is made; --samples=N says how many there will be")
    else:
        lines.append(f"epochs: {rows / samples.rows:.2f} ({samples.described})")
    lines.append(
        f"operations: {iteration_flops(config, samples) / 1e15:.2f} x 10^15 an iteration, forward and backward"
    )
    return "\n".join(lines)


def iteration_flops(config: RunConfig, samples: Samples | None) -> float:
    """Useful operations of one iteration over full rows."""
    model = needed(config.model, "model", fix="choose one with model=NAME")
    length = config.training.seq_length
    segment = min(length, samples.segment_length) if samples and samples.segment_length else length
    return config.training.global_batch_size * flops_of(model, [segment]) * length / segment


def hours(config: RunConfig, samples: Samples | None, gpu: Gpu, mfu: float) -> float:
    """Of the run at an assumed share ``mfu`` of the dense peak of ``gpu`` in the numbers that are multiplied."""
    peak = gpu.fp8_tflops if config.precision.fp8 else gpu.bf16_tflops
    assert peak is not None
    seconds = iteration_flops(config, samples) / (mfu * peak * 1e12 * config.parallel.world_size)
    return config.training.train_iters * seconds / 3600
