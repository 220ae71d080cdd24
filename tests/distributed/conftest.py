"""Runs the cases of all worker modules with one torchrun per number of processes.

A test file names its worker module as ``WORKER``. That module has ``WORLD_SIZES``, and ``run_cases(root)``, which runs
its cases for the current number of processes and leaves files in ``root``. Before that, ``prepare(root)`` runs in one
process; by default it writes a data set.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import joined_processes
from tests.helpers.torchrun import run_workers
from tests.helpers.training_run import CPU, EXACT, write_dataset


@pytest.fixture(scope="session")
def distributed_runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ``WORKER`` has the files of each worker whose tests were collected.

    The cases of one process run in this process.
    """
    root = tmp_path_factory.mktemp("distributed")
    names = dict.fromkeys(getattr(item.module, "WORKER", None) for item in request.session.items)
    workers = {name: importlib.import_module(f"tests.distributed.{name}") for name in names if name is not None}
    for name, worker in workers.items():
        getattr(worker, "prepare", write_dataset)(root / name)
    for world_size in sorted({size for worker in workers.values() for size in worker.WORLD_SIZES}):
        chosen = [name for name, worker in workers.items() if world_size in worker.WORLD_SIZES]
        if world_size > 1:
            run_workers(chosen, root, world_size=world_size)
            continue
        with joined_processes(prepare_device(CPU, EXACT)):
            for name in chosen:
                workers[name].run_cases(root / name)
    return root


@pytest.fixture(scope="module")
def root(request: pytest.FixtureRequest, distributed_runs: Path) -> Path:
    """The files of this test file's worker."""
    return distributed_runs / request.module.WORKER
