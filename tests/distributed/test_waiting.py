"""Tests that ranks wait for a rank that works for longer than a collective may take, for example at a download."""

from __future__ import annotations

from pathlib import Path

WORKER = "waiting_worker"


def test_all_ranks_get_the_result_of_a_slow_rank(distributed_runs: Path) -> None:
    root = distributed_runs / WORKER
    assert (root / "rank0").read_text() == (root / "rank1").read_text() == "([0, 0, 0], ['0', '1'])"
    assert [path.name for path in (root / "one_node").iterdir()] == ["0"]
