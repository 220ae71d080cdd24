"""Runs the experiment on real models that docs/results/real-coder.md plans.

    python -m benchmarks.real_coder prepare --data FOLDER --out FOLDER
    python -m benchmarks.real_coder run --models FOLDER --data FOLDER --runs FOLDER [--cell NAME]
    python -m benchmarks.real_coder table
    python -m benchmarks.real_coder plot

``prepare`` reads a folder of public data (``real_coder_data.py`` names its files), and ``run --data`` reads what it
wrote. ``--models`` has the folders ``qwen25-coder-0.5b`` and ``smollm2-135m``. ``run`` stores the results of a cell in
``docs/results/real-coder`` when it ends. ``table`` prints the tables of that page, and ``plot`` draws
``docs/images/real_coder.png``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.real_coder_data import prepare
from benchmarks.real_coder_plot import IMAGE, draw
from benchmarks.real_coder_results import RESULTS
from benchmarks.real_coder_run import run
from benchmarks.real_coder_table import tables
from megatron_ssd.cli.entry import run_guarded
from megatron_ssd.formatting import aligned


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subcommands = parser.add_subparsers(dest="command", required=True)
    for name, folders in {
        "prepare": ("data", "out"),
        "run": ("models", "data", "runs"),
        "table": (),
        "plot": (),
    }.items():
        subcommand = subcommands.add_parser(name)
        for folder in folders:
            subcommand.add_argument(f"--{folder}", type=Path, required=True, metavar="FOLDER")
        if name == "run":
            subcommand.add_argument("--cell", action="append", default=[], metavar="NAME", help="run only this cell")
    options = parser.parse_args()
    run_guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    if options.command == "prepare":
        found = prepare(options.data, options.out)
        outcomes = ["kept", "duplicate", "contaminated"]
        counts = ([name, *(str(counts[outcome]) for outcome in outcomes)] for name, counts in found.items())
        print("\n".join(aligned([["file", *outcomes], *counts])))
    elif options.command == "run":
        run(options.models, options.data, options.runs, RESULTS, names=options.cell)
    elif options.command == "plot":
        draw(RESULTS, IMAGE)
        print(f"wrote {IMAGE}")
    else:
        print(tables(RESULTS))


if __name__ == "__main__":
    main()
