"""A sample in a packed row is the sample alone, whatever stands beside it, on every rank of every layout.

Looked at are the queries that attention gets in each layer, after rotation: they are what they would be at the
beginning of a row, so positions start anew in each sample, and everything below them saw the sample alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import process_groups
from tests.distributed.packing_worker import LAYOUTS, look
from tests.helpers.torchrun import run_workers
from tests.helpers.training_run import CPU, DENSE, EXACT, MOE, write_dataset

ROUNDING = 1e-5  # of queries, which are normalised to a size of about 1
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="several processes on one GPU are not this test")


def check(facts: dict[str, Any], *, model: Any) -> None:
    assert facts["positions"] > 0
    assert facts["alone"] < ROUNDING
    # Experts are multiplied with as many rows as they were given, neighbours' included: that rounds.
    assert facts["neighbours"] < (ROUNDING if model is MOE else 1e-30)
    assert facts["leak"].startswith("training.self_test: sample ")
    assert "in a packed sequence and" in facts["leak"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes saw, a file for each layout and rank."""
    root = tmp_path_factory.mktemp("packing")
    write_dataset(root)
    run_workers("packing_worker", root, world_size=2, seconds=250)
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_third_sample_of_a_row_is_the_sample_alone(root: Path, layout: str) -> None:
    ranks = [json.loads((root / f"{layout}-{rank}.json").read_text()) for rank in range(2)]
    model, sizes = LAYOUTS[layout]
    for facts in ranks:
        check(facts, model=model)
        assert facts["layers"] == 4 // sizes.get("pipeline_model_parallel_size", 1)
    assert ranks[0]["leak"] == ranks[1]["leak"], "every rank raises the same"


@pytest.mark.parametrize("model", [DENSE, MOE], ids=["dense", "moe"])
def test_in_one_process(tmp_path: Path, model: Any) -> None:
    write_dataset(tmp_path)
    with process_groups(ParallelConfig(), device=prepare_device(CPU, EXACT)):
        check(look(tmp_path, model, ParallelConfig()), model=model)
