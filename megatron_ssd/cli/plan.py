"""Entry of ``tools/plan.py``: what a run will take, and the table of recipes in docs/guides/recipes.md."""

from __future__ import annotations

import argparse
import dataclasses
from functools import cache
from pathlib import Path

from megatron_ssd.cli.compose import CONFIG_DIR, compose_config
from megatron_ssd.cli.entry import parser, prints_config, run_guarded, start_logging
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.errors import require
from megatron_ssd.planner.dry_run import LayoutReport, lay_out
from megatron_ssd.planner.memory import GB, worst_rank
from megatron_ssd.planner.plan import (
    Samples,
    fits,
    fits_text,
    hours,
    layout_name,
    memory_text,
    numbers_name,
    recompute_modes,
    recompute_name,
    run_text,
)
from megatron_ssd.runtime.gpus import GPUS

DOCUMENT = CONFIG_DIR.parent / "docs" / "guides" / "recipes.md"
BEGIN, END = "<!-- table: python tools/plan.py --table --write -->", "<!-- end of table -->"
RECIPES = {
    "b200_mxfp8": "B200",
    "b200_bf16": "B200",
    "b200_tp_pp": "B200",
    "h200_blockwise": "H200",
    "h100_blockwise": "H100",
}


def main() -> None:
    """Print the plan of the configuration of the command line."""
    options = parser("What a run will take: memory by part, whether it fits, epochs, operations. Needs no GPU.")
    options.add_argument("--gpu", choices=list(GPUS), help="the GPU to plan for; all that are known where left out")
    options.add_argument("--mfu", type=float, help="assumed share of the peak, for hours; takes --gpu")
    options.add_argument("--samples", type=int, help="training samples, before there is a data set")
    options.add_argument("--mean-tokens", type=int, help="their mean length, for packed rows and for operations")
    options.add_argument("--table", action="store_true", help="the table of docs/guides/recipes.md, and nothing else")
    options.add_argument("--write", action="store_true", help="with --table: put it into docs/guides/recipes.md")
    arguments = options.parse_intermixed_args()
    run_guarded(lambda: _run(arguments), traceback=arguments.traceback)


def _run(arguments: argparse.Namespace) -> None:
    start_logging()
    if arguments.table:
        text = table()
        if arguments.write:
            DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8"), text), encoding="utf-8")
        else:
            print(text)
        return
    if not prints_config(arguments):
        _print_plan(compose_config(arguments.overrides, arguments.config_dir.resolve()), arguments)


def _print_plan(config: RunConfig, arguments: argparse.Namespace) -> None:
    model = needed(config.model, "model", fix="choose one with model=NAME")
    require(arguments.mfu is None or (arguments.gpu is not None and 0 < arguments.mfu <= 1), f"--mfu {arguments.mfu}",
            rule="is a share of the peak of the GPU that --gpu names", fix="use --gpu=B200 --mfu=0.3")  # fmt: skip
    layout = lay_out(model, config.parallel, config.precision, config.moe)
    print(memory_text(config, layout))
    gpus = [GPUS[arguments.gpu]] if arguments.gpu else list(GPUS.values())
    print(fits_text(worst_rank(config, layout), gpus), end="\n\n")
    samples = _samples(config, arguments)
    print(run_text(config, samples))
    if arguments.mfu is not None:
        (gpu,) = gpus
        require(config.precision.fp8 is None or gpu.fp8_tflops is not None, f"--gpu {gpu.name}",
                rule="has no FP8 units", fix="use precision=bf16")  # fmt: skip
        print(f"hours: {hours(config, samples, gpu, arguments.mfu):.1f} at an assumed utilisation of {arguments.mfu:g}")


def _samples(config: RunConfig, arguments: argparse.Namespace) -> Samples | None:
    """From the data set where there is one, else from the command line."""
    mean, length = arguments.mean_tokens, config.training.seq_length
    if (Path(config.run_dir) / "dataset" / "manifest.json").is_file():
        from megatron_ssd.training.data import open_dataset

        report = open_dataset(config).packing_report()
        return Samples(rows=report.rows, described=str(report), segment_length=report.positions // report.samples)
    if arguments.samples is None:
        return None
    packed = config.training.packing != "none"
    require(not packed or mean is not None, f"--samples {arguments.samples}",
            rule="how many rows they fill depends on their length where rows are packed",
            fix="add --mean-tokens=M")  # fmt: skip
    rows = max(arguments.samples * mean / length, 1) if packed and mean else arguments.samples
    return Samples(rows=rows, described=f"{arguments.samples:,} samples, as --samples says", segment_length=mean)


@cache
def recipe_layout(name: str) -> tuple[RunConfig, LayoutReport]:
    """A recipe's configuration, and what every rank of it holds."""
    config = compose_config([f"experiment={name}"])
    model = needed(config.model, "model", fix="an experiment in RECIPES names one")
    return config, lay_out(model, config.parallel, config.precision, config.moe)


def table() -> str:
    """The recipes' memory as Markdown."""
    head = "recipe|GPUs|layout|numbers|recompute|weights|gradients|optimizer|activations|logits|rest|total|of"
    columns = head.split("|")
    lines = [_row(columns), _row(["---"] * 5 + ["---:"] * (len(columns) - 5))]
    for name, gpu in RECIPES.items():
        config, layout = recipe_layout(name)
        memory = worst_rank(config, layout)
        count, sizes = layout_name(config).split(" GPUs, ")
        rest = memory.working_set + memory.ema + memory.reserve
        figures = [memory.weights + memory.fp8_weights, memory.gradients, memory.optimizer, memory.activations,
                   memory.logits, rest, memory.total]  # fmt: skip
        cells = [f"`{name}`", f"{count} x {gpu}", sizes, numbers_name(config.precision),
                 recompute_name(config.precision)]  # fmt: skip
        lines.append(_row([*cells, *(f"{figure / GB:.1f}" for figure in figures), _memory_of(gpu)]))
    return "\n".join([*lines, "", *_modes_table()])


def _modes_table() -> list[str]:
    """Total by recompute mode, with what does not fit in brackets."""
    lines = [_row(["recipe", "none", "selective (layernorm, moe_act)", "selective (layernorm, moe)", "full"]),
             _row(["---"] + ["---:"] * 4)]  # fmt: skip
    for name, gpu in RECIPES.items():
        config, layout = recipe_layout(name)
        model = needed(config.model, "model", fix="an experiment in RECIPES names one")
        cells = []
        for precision in recompute_modes(model, config.precision, grouped_gemm=config.moe.grouped_gemm):
            memory = worst_rank(dataclasses.replace(config, precision=precision), layout)
            figure = f"{memory.activations / GB:.1f} of {memory.total / GB:.1f}"
            cells.append(figure if fits(memory, gpu) else f"({figure})")
        lines.append(_row([f"`{name}`", *cells]))
    return lines


def _memory_of(gpu: str) -> str:
    return f"{GPUS[gpu].memory_gb:g}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def with_table(document: str, text: str) -> str:
    """``document`` with ``text`` between its marks."""
    head, _, rest = document.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{text}\n{END}{tail}"
