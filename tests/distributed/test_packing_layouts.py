"""Tests that a sample in a packed sequence is computed as if it were alone, on every rank of every layout.

The tests compare the queries that attention gets in each layer, after rotation. If they are the same as at the
beginning of a sequence, position ids restart in each sample, and all earlier layers saw only this sample.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.packing_worker import LAYOUTS
from tests.helpers.devices import without_gpu
from tests.helpers.training_run import MOE

WORKER = "packing_worker"
ROUNDING = 1e-5  # of queries, which are normalised to about 1
pytestmark = without_gpu


@pytest.mark.parametrize(("world_size", "layout"), [(size, name) for size, names in LAYOUTS.items() for name in names])
def test_a_sample_of_a_packed_sequence_equals_the_sample_alone(root: Path, world_size: int, layout: str) -> None:
    ranks = [json.loads((root / f"{layout}-{rank}.json").read_text()) for rank in range(world_size)]
    model, sizes = LAYOUTS[world_size][layout]
    for facts in ranks:
        assert facts["tokens"] > 0
        assert facts["layers"] == model.num_hidden_layers // sizes.get("pipeline_model_parallel_size", 1)
        assert facts["alone"] < ROUNDING
        # Matrix products of experts include tokens of neighbouring samples, which changes the rounding.
        assert facts["neighbours"] < (ROUNDING if model is MOE else 1e-30)
        assert facts["leak"].startswith("training.self_test: sample ")
        assert "in a packed sequence and" in facts["leak"]
        assert facts["leak"] == ranks[0]["leak"], "ranks raised different errors"
