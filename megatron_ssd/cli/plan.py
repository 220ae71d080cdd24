"""Command line of ``tools/plan.py``, which predicts what a run needs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from megatron_ssd.cli.compose import CONFIG_DIR, compose_config
from megatron_ssd.cli.entry import config_source, parser, run_command
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.errors import require
from megatron_ssd.nvidia_smi import visible_capability
from megatron_ssd.planner.default_layout import ranked_layouts
from megatron_ssd.planner.duration import duration_text
from megatron_ssd.planner.gpus import GPUS, Gpu
from megatron_ssd.planner.layout import LayoutReport
from megatron_ssd.planner.memory import GB, worst_rank
from megatron_ssd.planner.plan import (
    Samples,
    fits_text,
    layout_name,
    memory_text,
    numbers_reason,
    recompute_name,
    run_text,
)
from megatron_ssd.planner.saving import DISK_RATE, save_text
from megatron_ssd.planner.tables import (
    Recipe,
    hours_table,
    memory_table,
    rates_table,
    recompute_table,
    scale_table,
)

DOCUMENT = CONFIG_DIR.parent / "docs" / "guides" / "recipes.md"
RECIPES = {
    "b200_64k": "B200",
    "b200_32k": "B200",
    "b200_8k": "B200",
    "h200_64k": "H200",
    "h200_32k": "H200",
    "h200_8k": "H200",
    "h100x16_64k": "H100",
    "h100x16_32k": "H100",
    "h100x16_8k": "H100",
    "h100_64k": "H100",
    "h100_32k": "H100",
    "h100_8k": "H100",
    "h100_4b_64k": "H100",
    "h100_4b_32k": "H100",
    "h100_4b_8k": "H100",
    "gpu24_1.7b_8k": "L4",
}
_SCALED = ("b200_64k", "b200_8k", "h200_64k", "h200_8k")
_COUNTS = (8, 64, 512, 4096)
_CUDA = (13, 0)  # of the environment for GPUs (docs/guides/gpu.md)
_SHOWN = 20  # layouts of --layouts; those after them split more than anybody wants


def main() -> None:
    """Print the plan of the configuration of the command line."""
    options = parser("Predict what a run needs: memory by part, whether it fits, epochs, operations. Needs no GPU.")
    options.add_argument("--gpu", choices=list(GPUS), help="the GPU to plan for, with hours; by default all known ones")
    options.add_argument("--samples", type=_positive, help="number of training samples, if there is no data set yet")
    options.add_argument("--mean-tokens", type=_positive, help="their mean length, for packing and operations")
    options.add_argument("--layouts", type=_positive, metavar="N", help="list the layouts that fit N GPUs; needs --gpu")
    options.add_argument(
        "--disk",
        type=float,
        default=DISK_RATE,
        help=f"GB/s at which all processes together write to the disk, for the seconds of a save (default {DISK_RATE})",
    )
    options.add_argument("--table", action="store_true", help="print only the tables of docs/guides/recipes.md")
    options.add_argument("--write", action="store_true", help="with --table: write them to docs/guides/recipes.md")
    run_command(options, _run)


def _run(arguments: argparse.Namespace) -> None:
    require(arguments.table or not arguments.write, "--write", rule="writes tables", fix="add --table")
    if arguments.table:
        texts = tables()
        if arguments.write:
            DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8"), texts), encoding="utf-8")
        else:
            print("\n\n".join(texts.values()))
        return
    gpu = GPUS.get(arguments.gpu)
    capability = gpu.capability if gpu else visible_capability()
    config = compose_config(arguments.overrides, config_source(arguments), capability=lambda: capability)
    if config.precision.auto:
        print(numbers_reason(config.precision, capability))
    if gpu is not None:
        from megatron_ssd.runtime.hardware import check_precision  # see _lay_out

        check_precision(config.precision, gpu.capability, _CUDA)
    if arguments.layouts is None:
        _print_plan(config, gpu, arguments)
    else:
        require(gpu is not None, f"--layouts {arguments.layouts}", rule="is a number of GPUs of one kind",
                fix=f"add --gpu, such as --gpu=B200 --layouts={arguments.layouts}")  # fmt: skip
        assert gpu is not None
        _print_ranking(config, gpu, arguments.layouts)


def _print_plan(config: RunConfig, gpu: Gpu | None, arguments: argparse.Namespace) -> None:
    require(arguments.disk > 0, f"--disk {arguments.disk:g}", rule="is a rate in GB/s", fix="use more than 0")
    samples = _samples(config, arguments)
    layout = _lay_out(config)
    memory = worst_rank(config, layout)
    print(memory_text(config, layout))
    print(fits_text(memory, [gpu] if gpu else list(GPUS.values())), end="\n\n")
    print(save_text(config, layout, arguments.disk), end="\n\n")
    print(run_text(config, samples))
    if gpu is not None and memory.total > gpu.memory_gb * GB:
        print(f"hours: none, since it does not fit; docs/guides/recipes.md has experiments for each GPU, and "
              f"--gpu={gpu.name} --layouts={config.parallel.world_size} lists what fits")  # fmt: skip
    elif gpu is not None:
        print(duration_text(config, samples, gpu))


def _print_ranking(config: RunConfig, gpu: Gpu, num_gpus: int) -> None:
    found = ranked_layouts(config, num_gpus=num_gpus, gpu_bytes=gpu.memory_gb * GB)
    require(
        bool(found),
        f"--layouts {num_gpus}",
        rule=f"no layout of this model and these numbers fits {num_gpus} x {gpu.name} ({gpu.memory_gb:g} GB)",
        fix="use more GPUs, or an experiment for such GPUs (docs/guides/recipes.md), whose optimizer state is smaller",
    )
    print(f"{_model(config).name}: {len(found)} layouts fit {num_gpus} x {gpu.name} ({gpu.memory_gb:g} GB), "
          "the least recomputation and the cheapest split first")  # fmt: skip
    for choice in found[:_SHOWN]:
        print(f"  {layout_name(choice.config.parallel):28s} {choice.memory / GB:8.1f} GB   "
              f"recompute {recompute_name(choice.config.precision)}")  # fmt: skip
    if len(found) > _SHOWN:
        print(f"  and {len(found) - _SHOWN} more")
    print(f"for the first one: {found[0].changes(config) or 'change nothing'}")


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not an integer above 0")
    return number


def _samples(config: RunConfig, arguments: argparse.Namespace) -> Samples | None:
    """From the data set if there is one, else from the command line."""
    count, mean = arguments.samples, arguments.mean_tokens
    if (Path(config.run_dir) / "dataset" / "manifest.json").is_file():
        require(count is None and mean is None, "--samples, --mean-tokens",
                rule=f"are for a run without a data set, and {config.run_dir}/dataset has one",
                fix="leave them out, or use another run_dir")  # fmt: skip
        from megatron_ssd.training.data import open_dataset  # see _lay_out

        return Samples.of_dataset(open_dataset(config, _model(config)).packing_report())
    if count is None:
        require(mean is None, f"--mean-tokens {mean}", rule="is the length of samples", fix="add --samples=N")
        return None
    longest = config.training.seq_length
    require(mean is None or mean <= longest, f"--mean-tokens {mean}",
            rule=f"is more than training.seq_length ({longest}), the longest sample of this run",
            fix="lower it, or take an experiment for longer samples")  # fmt: skip
    packed = config.training.epoch_packing != "none"
    require(not packed or mean is not None, f"--samples {count}",
            rule="the number of packed sequences that they fill depends on their length",
            fix="add --mean-tokens=M")  # fmt: skip
    return Samples.expected(count, mean, packed_length=longest if packed else None)


def _model(config: RunConfig) -> ModelConfig:
    return needed(config.model, "model")


def _lay_out(config: RunConfig) -> LayoutReport:
    # Imported here for two reasons: --help and errors should not wait for torch, and Megatron-Core must be imported
    # after run_command has silenced its import warnings.
    from megatron_ssd.planner.dry_run import lay_out

    return lay_out(_model(config), config.parallel, config.moe)


@cache
def recipe(name: str) -> Recipe:
    """A recipe's configuration, and what every rank of it holds."""
    config = compose_config([f"experiment={name}"])
    return Recipe(config, _lay_out(config), GPUS[RECIPES[name]])


def tables() -> dict[str, str]:
    """The tables of docs/guides/recipes.md, by the name in their marks."""
    recipes = {name: recipe(name) for name in RECIPES}
    return {
        "memory": memory_table(recipes),
        "recompute": recompute_table(recipes),
        "hours": hours_table(recipes),
        "scale": scale_table({name: recipes[name] for name in _SCALED}, _COUNTS),
        "rates": rates_table(),
    }


def with_tables(document: str, texts: Mapping[str, str]) -> str:
    """``document`` with each text between its marks."""
    for name, text in texts.items():
        begin, end = f"<!-- {name}: python tools/plan.py --table --write -->", f"<!-- end of {name} -->"
        head, _, rest = document.partition(begin)
        _, closed, tail = rest.partition(end)
        assert closed, f"{DOCUMENT.name} has no marks for {name}"
        document = f"{head}{begin}\n{text}\n{end}{tail}"
    return document
