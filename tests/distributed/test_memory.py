"""Tests that the planned weights, gradients and optimizer state equal what every rank allocates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ssd.planner.dry_run import lay_out
from megatron_ssd.planner.memory import all_ranks
from tests.distributed.memory_worker import CASES, case_config
from tests.helpers.devices import without_gpu

# Buffers of the distributed optimizer are padded so that every rank's share starts on a boundary: a few hundred values
# of these tiny models' 10^5.
TOLERANCE = 0.02
WORKER = "memory_worker"
pytestmark = without_gpu


@pytest.mark.parametrize(("world_size", "case"), [(size, name) for size, cases in CASES.items() for name in cases])
def test_planned_state_equals_the_allocated_state(root: Path, world_size: int, case: str) -> None:
    config = case_config(world_size, case, root)
    assert config.model is not None
    layout = lay_out(config.model, config.parallel, config.moe)
    for rank, planned in enumerate(all_ranks(config, layout)):
        held = json.loads((root / f"{case}-{rank}.json").read_text())
        assert planned.weights == pytest.approx(held["weights"], rel=TOLERANCE)
        assert planned.gradients == pytest.approx(held["gradients"], rel=TOLERANCE)
        assert planned.optimizer == pytest.approx(held["optimizer"], rel=TOLERANCE)
