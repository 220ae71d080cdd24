"""Command line of ``tools/plan.py``, which predicts what a run needs."""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path

from megatron_ssd.cli.compose import CONFIG_DIR, compose_config
from megatron_ssd.cli.entry import parser, run_command
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.errors import require
from megatron_ssd.nvidia_smi import visible_capability
from megatron_ssd.planner.gpus import GPUS
from megatron_ssd.planner.layout import LayoutReport
from megatron_ssd.planner.memory import worst_rank
from megatron_ssd.planner.plan import Samples, fits_text, hours, memory_text, numbers_reason, recipe_tables, run_text
from megatron_ssd.planner.saving import DISK_RATE, save_text

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
    options = parser("Predict what a run needs: memory by part, whether it fits, epochs, operations. Needs no GPU.")
    options.add_argument("--gpu", choices=list(GPUS), help="the GPU to plan for; by default all known ones")
    options.add_argument("--mfu", type=float, help="assumed share of the peak, for hours; needs --gpu")
    options.add_argument("--samples", type=int, help="number of training samples, if there is no data set yet")
    options.add_argument("--mean-tokens", type=int, help="their mean length in tokens, for packing and operations")
    options.add_argument("--disk", type=float, default=DISK_RATE, help="GB/s of the disk, for the seconds of a save")
    options.add_argument("--table", action="store_true", help="print only the tables of docs/guides/recipes.md")
    options.add_argument("--write", action="store_true", help="with --table: write them to docs/guides/recipes.md")
    run_command(options, _run)


def _run(arguments: argparse.Namespace) -> None:
    if not arguments.table:
        gpu = GPUS.get(arguments.gpu)
        capability = gpu.capability if gpu else visible_capability()
        config = compose_config(arguments.overrides, arguments.config_dir.resolve(), capability=lambda: capability)
        if config.precision.auto:
            print(numbers_reason(config.precision, capability))
        _print_plan(config, arguments)
    elif arguments.write:
        DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8"), table()), encoding="utf-8")
    else:
        print(table())


def _print_plan(config: RunConfig, arguments: argparse.Namespace) -> None:
    require(arguments.mfu is None or (arguments.gpu is not None and 0 < arguments.mfu <= 1), f"--mfu {arguments.mfu}",
            rule="is a share of the peak of the GPU that --gpu names", fix="use --gpu=B200 --mfu=0.3")  # fmt: skip
    layout = _lay_out(config)
    print(memory_text(config, layout))
    gpus = [GPUS[arguments.gpu]] if arguments.gpu else list(GPUS.values())
    print(fits_text(worst_rank(config, layout), gpus), end="\n\n")
    require(arguments.disk > 0, f"--disk {arguments.disk:g}", rule="is a rate in GB/s", fix="use more than 0")
    print(save_text(config, layout, arguments.disk), end="\n\n")
    samples = _samples(config, arguments)
    print(run_text(config, samples))
    if arguments.mfu is not None:
        (gpu,) = gpus
        require(config.precision.fp8 is None or gpu.fp8_tflops is not None, f"--gpu {gpu.name}",
                rule="has no FP8 units", fix="use precision=bf16")  # fmt: skip
        print(f"hours: {hours(config, samples, gpu, arguments.mfu):.1f} at an assumed utilisation of {arguments.mfu:g}")


def _samples(config: RunConfig, arguments: argparse.Namespace) -> Samples | None:
    """From the data set if there is one, else from the command line."""
    if (Path(config.run_dir) / "dataset" / "manifest.json").is_file():
        from megatron_ssd.training.data import open_dataset  # see _lay_out

        return Samples.of_dataset(open_dataset(config, _model(config)).packing_report())
    if arguments.samples is None:
        return None
    packed = config.training.epoch_packing != "none"
    require(not packed or arguments.mean_tokens is not None, f"--samples {arguments.samples}",
            rule="the number of packed sequences that they fill depends on their length",
            fix="add --mean-tokens=M")  # fmt: skip
    packed_length = config.training.seq_length if packed else None
    return Samples.expected(arguments.samples, arguments.mean_tokens, packed_length=packed_length)


def _model(config: RunConfig) -> ModelConfig:
    return needed(config.model, "model")


def _lay_out(config: RunConfig) -> LayoutReport:
    # Imported here for two reasons: --help and errors should not wait for torch, and Megatron-Core must be imported
    # after run_command has silenced its import warnings.
    from megatron_ssd.planner.dry_run import lay_out

    return lay_out(_model(config), config.parallel, config.moe)


@cache
def recipe_layout(name: str) -> tuple[RunConfig, LayoutReport]:
    """A recipe's configuration, and what every rank of it holds."""
    config = compose_config([f"experiment={name}"])
    return config, _lay_out(config)


def table() -> str:
    """The tables of docs/guides/recipes.md."""
    return recipe_tables({name: (*recipe_layout(name), gpu) for name, gpu in RECIPES.items()})


def with_table(document: str, text: str) -> str:
    """``document`` with ``text`` between its marks."""
    head, _, rest = document.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{text}\n{END}{tail}"
