"""Compares training in two environments bitwise.

    python -m tests.compare_versions .venv/bin/python .venv-next/bin/python

Both environments run every case of ``tests.distributed.loss_worker``, dense and with experts, with one process and with
two. They write losses and gradient norms as JSON, which keeps every bit of a float. Then each environment resumes from
a checkpoint of the other. The exit status is 1 if a digit differs. ``make test-next`` runs this program; it is not a
test of the suite, which runs in one environment.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.helpers.paths import ROOT
from tests.helpers.training_run import metrics

WORLD_SIZES = (1, 2)
_VERSIONS = (
    "import platform; from importlib.metadata import version;"
    "print('Python', platform.python_version(), *(f'{name} {version(name)}' for name in ('torch', 'megatron-core')))"
)
_DATASET = (
    "import pathlib, sys; from tests.helpers.training_run import write_dataset;write_dataset(pathlib.Path(sys.argv[1]))"
)
_TRAIN = (
    "import pathlib, sys; from launch.train import train; from tests.helpers.training_run import *;"
    "run_dir = pathlib.Path(sys.argv[1]);"
    "train(training_config(run_dir, training={'train_iters': 6}, checkpoint={'save_interval': 3}))"
)


def run(python: str, *arguments: str) -> str:
    """Run ``python`` at the root of the project and return its standard output; an error of it ends this program."""
    command = ["timeout", "500", python, "-W", "ignore", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    return done.stdout.strip()


def curves(python: str, root: Path) -> dict[str, list[dict[str, Any]]]:
    """Train every case with the interpreter ``python``; returns case -> its iterations."""
    folder = root / "loss_worker"
    folder.mkdir(parents=True)
    run(python, "-c", _DATASET, str(folder))
    for processes in WORLD_SIZES:
        run(python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
            "-m", "tests.helpers.torchrun", str(root), folder.name)  # fmt: skip
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*-*.json"))}


def resumed(first: str, second: str, root: Path) -> str:
    """The first difference if ``second`` runs the second half of a run of ``first``; empty if there is none."""
    root.mkdir()
    run(first, "-c", _DATASET, str(root))
    run(first, "-c", _TRAIN, str(root))
    expected, published = metrics(root), root / "checkpoints"
    # As if the run had been stopped at its first checkpoint.
    (published / "manifest.json").unlink()
    shutil.rmtree(published / "iter_0000006")
    published.rename(root / "checkpoints.partial")
    run(second, "-c", _TRAIN, str(root))
    return difference(_exact(expected), _exact(metrics(root)))


def _exact(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The metrics that do not depend on time."""
    return [{name: record[name] for name in ("loss", "grad_norm", "learning_rate", "samples")} for record in records]


def difference(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
    """The first number that differs; empty if there is none."""
    if len(one) != len(other):
        return f"{len(one)} and {len(other)} iterations"
    for iteration, (record, record_of_other) in enumerate(zip(one, other, strict=True), start=1):
        for name in record.keys() | record_of_other.keys():
            if record.get(name) != record_of_other.get(name):
                return f"{name} of iteration {iteration}: {record.get(name)!r} and {record_of_other.get(name)!r}"
    return ""


def main(pythons: list[str]) -> int:
    """Print one line per case and return the exit status."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for index, python in enumerate(pythons):
            print(run(python, "-c", _VERSIONS), flush=True)
            found.append(curves(python, Path(folder) / str(index)))
        resumes = {
            f"resume, {name}": resumed(*pair, Path(folder) / f"resume{index}")
            for index, (name, pair) in enumerate({"first to second": pythons, "second to first": pythons[::-1]}.items())
        }
    first, second = found
    assert first.keys() == second.keys(), "the same worker wrote different cases"
    differences = {case: difference(first[case], second[case]) for case in first}
    for case, text in differences.items():
        last = first[case][-1]
        print(f"{case:40} loss {last['loss']:.17g}  grad norm {last['grad_norm']:.17g}  {text or 'equal'}")
    for name, text in resumes.items():
        print(f"{name:40} {text or 'equal'}")
    differing = sum(map(bool, [*differences.values(), *resumes.values()]))
    records = sum(map(len, first.values()))
    verdict = f"{differing} differ" if differing else "all bits equal"
    print(f"{len(first)} cases, {records} iterations, {len(resumes)} resumes: {verdict}")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
