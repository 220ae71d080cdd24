"""Tests that training resumes under another layout, and that a non-finite number on one rank skips the update on all.

The runs are in fp32. The largest relative differences measured over three more iterations were 7e-8 (loss), 2e-7
(gradient norm) and 2e-10 (norm of the EMA); the tolerance is about ten times the second.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import process_groups
from tests.distributed.resume_worker import CHANGES, ONE, SAVED, SKIPPING, resume
from tests.helpers.devices import without_gpu
from tests.helpers.training_run import CPU, EXACT

TOLERANCE = 2e-6
WORKER = "resume_worker"
pytestmark = without_gpu


@pytest.fixture(scope="module")
def resumed(root: Path) -> Path:
    """The results of every case: those of the worker, and those that one process resumes here."""
    with process_groups(ParallelConfig(), device=prepare_device(CPU, EXACT)):
        for change in CHANGES:
            if change[-1] == ONE:
                resume(root, *change)
    return root


def read(root: Path, name: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads((root / f"{name}.json").read_text())
    return records


@pytest.mark.parametrize("change", CHANGES, ids="-".join)
def test_another_layout_resumes_where_the_first_one_stopped(resumed: Path, change: tuple[str, ...]) -> None:
    expected, found = read(resumed, "-".join(change[:-1])), read(resumed, "-".join(change))
    *expected, expected_ema = expected
    *records, ema = found
    for key in ("iteration", "samples", "learning_rate", "valid_tokens"):
        assert [record[key] for record in records] == [record[key] for record in expected]
    for key in ("loss", "grad_norm"):
        assert [record[key] for record in records] == pytest.approx([record[key] for record in expected], rel=TOLERANCE)
    assert ema["ema"] == pytest.approx(expected_ema["ema"], rel=TOLERANCE)


@pytest.mark.parametrize("name", ["dense-dp2-dp_reshardable", "dense-cp2-dp_reshardable"])
def test_ranks_with_the_same_weights_share_the_writing(root: Path, name: str) -> None:
    folder = root / name / f"iter_{SAVED:07d}"
    first, second = (sum(path.stat().st_size for path in folder.glob(f"__{rank}_*")) for rank in (0, 1))
    assert first == pytest.approx(second, rel=0.1)


@pytest.mark.parametrize(("model", "layout"), SKIPPING)
def test_a_non_finite_number_on_one_rank_skips_the_update_on_all(root: Path, model: str, layout: str) -> None:
    seen = read(root, f"skip-{model}-{layout}")
    assert len(seen) == 2
    for rank in seen:
        assert rank == {"skipped": [False, True, False], "untouched": True, "changed": True}
