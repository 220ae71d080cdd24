"""Workers of one node share its devices evenly, each device with one of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ssd.config.generation import WorkerConfig
from megatron_ssd.errors import UserError
from megatron_ssd.generation.node_share import share_of_node


@given(world=st.integers(1, 20), more=st.integers(0, 50), before=st.integers(0, 5))
def test_each_device_is_one_workers(world: int, more: int, before: int) -> None:
    devices = [f"gpu{number}" for number in range(world + more)]
    shares = [
        share_of_node(
            devices, WorkerConfig(rank=before + rank, world=before + world, local_rank=rank, local_world=world)
        )
        for rank in range(world)
    ]
    assert [device for share in shares for device in share] == devices
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_worker_that_says_nothing_of_its_node_has_all_of_it() -> None:
    assert share_of_node(["a", "b"], WorkerConfig()) == ["a", "b"]
    assert share_of_node(["a", "b"], WorkerConfig(rank=1, world=2)) == ["a", "b"]
    assert share_of_node([], WorkerConfig()) == []


def test_fewer_devices_than_workers_are_refused() -> None:
    with pytest.raises(UserError, match="3 workers on this node: need a GPU or processor core each, and see 2"):
        share_of_node(["0", "1"], WorkerConfig(rank=0, world=3, local_rank=0, local_world=3))
