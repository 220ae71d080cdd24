"""Makes the Markdown tables of docs/guides/recipes.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.planner.duration import duration
from megatron_ssd.planner.gpus import Gpu
from megatron_ssd.planner.layout import LayoutReport
from megatron_ssd.planner.memory import GB, worst_rank
from megatron_ssd.planner.plan import layout_name, numbers_name, recompute_modes, recompute_name
from megatron_ssd.planner.rates import OWN, RATES
from megatron_ssd.planner.scale import scaled


@dataclass(frozen=True)
class Recipe:
    """A configuration, what every rank of it holds, and the GPU that it is for."""

    config: RunConfig
    layout: LayoutReport
    gpu: Gpu


def memory_table(recipes: Mapping[str, Recipe]) -> str:
    """Layout and memory by part, in GB."""
    rows = []
    for name, recipe in recipes.items():
        config, memory = recipe.config, worst_rank(recipe.config, recipe.layout)
        parallel = config.parallel
        figures = [memory.weights + memory.fp8_weights, memory.gradients, memory.optimizer, memory.activations,
                   memory.rest, memory.total]  # fmt: skip
        rows.append([
            f"`{name}`", f"{parallel.world_size} x {recipe.gpu.name}", layout_name(parallel),
            numbers_name(config.precision), recompute_name(config.precision),
            f"{config.training.micro_batch_tokens // parallel.context_parallel_size:,}",
            *(f"{figure / GB:.1f}" for figure in figures), f"{recipe.gpu.memory_gb:g}",
        ])  # fmt: skip
    parts = "tokens|weights|gradients|optimizer|activations|rest|total|of"
    return _table("recipe|GPUs|layout|numbers|recompute", parts, rows)


def recompute_table(recipes: Mapping[str, Recipe]) -> str:
    """Activations and total by recompute mode, in GB; in brackets if the total does not fit."""
    modes = ("none", "selective (layernorm, moe_act)", "selective (layernorm, moe)", "selective (mlp)", "full")
    rows = []
    for name, recipe in recipes.items():
        config, cells = recipe.config, dict.fromkeys(modes, "")
        model = needed(config.model, "model")
        for precision in recompute_modes(model, config.precision, grouped_gemm=config.moe.grouped_gemm):
            memory = worst_rank(dataclasses.replace(config, precision=precision), recipe.layout)
            figure = f"{memory.activations / GB:.1f} of {memory.total / GB:.1f}"
            fits = memory.total <= recipe.gpu.memory_gb * GB
            cells[recompute_name(precision)] = figure if fits else f"({figure})"
        rows.append([f"`{name}`", *cells.values()])
    return _table("recipe", "|".join(modes), rows)


def hours_table(recipes: Mapping[str, Recipe]) -> str:
    """Hours of each recipe's run if every sample has the longest length, and the rates that they come from."""
    rows = []
    for name, recipe in recipes.items():
        training, found = recipe.config.training, duration(recipe.config, None, recipe.gpu)
        samples = f"{training.train_iters * training.global_batch_size:,}"
        rates = found.rates if found else []
        rows.append([
            f"`{name}`", ", ".join(dict.fromkeys(f"{rate.model} on {rate.gpu}" for rate in rates)) or "none",
            samples, f"{training.seq_length:,}", ", ".join(f"{rate.tflops:,.0f}" for rate in rates),
            ", ".join(f"{rate.tflops / rate.peak:.0%}" for rate in rates), str(found or "unknown"),
        ])  # fmt: skip
    return _table("recipe|rates of", "samples|tokens each|TFLOP/s per GPU|of the peak|hours", rows)


def rates_table() -> str:
    """Every measured rate with its source."""
    rows = [
        [rate.model, f"{rate.num_gpus} x {rate.gpu}", rate.numbers, rate.layout, _link(rate.source), rate.date,
         f"{rate.micro_batch_tokens:,}", f"{rate.segment_tokens:,}", f"{rate.tokens_per_second:,.0f}",
         f"{rate.tflops:,.0f}", f"{rate.tflops / rate.peak:.0%}"]
        for rate in RATES
    ]  # fmt: skip
    return _table("model|GPUs|numbers|layout|source|date",
                  "micro batch|segment|tokens/s per GPU|TFLOP/s per GPU|of the peak", rows)  # fmt: skip


def scale_table(recipes: Mapping[str, Recipe], counts: Iterable[int]) -> str:
    """Each recipe on more GPUs."""
    rows = []
    for name, recipe in recipes.items():
        for count in counts:
            at = scaled(recipe.config, recipe.layout, recipe.gpu, num_gpus=count)
            rows.append([
                f"`{name}`", f"{count:,}", f"{at.config.parallel.data_parallel_size:,}",
                f"{at.config.training.global_batch_size:,}", f"{at.config.training.train_iters:,}",
                f"{at.memory.optimizer / GB:.1f}", f"{at.memory.total / GB:.1f}", f"{at.exchanged / GB:.1f}",
                str(at.hours or "unknown"),
            ])  # fmt: skip
    return _table("recipe", "GPUs|replicas|samples per iteration|iterations|optimizer|memory|exchanged|hours", rows)


def _link(source: str) -> str:
    """A Markdown link to a source, seen from docs/guides."""
    if source == OWN:
        return f"[this project](../{source.removeprefix('docs/')})"
    return f"[{source.split('/')[4]}]({source})"


def _table(texts: str, numbers: str, rows: list[list[str]]) -> str:
    """A Markdown table whose columns ``texts`` are aligned to the left and ``numbers`` to the right."""
    left, right = texts.split("|"), numbers.split("|")
    lines = [left + right, ["---"] * len(left) + ["---:"] * len(right), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
