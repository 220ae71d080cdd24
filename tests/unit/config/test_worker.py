"""Tests where a worker's rank and the number of workers come from."""

from __future__ import annotations

import re

import pytest

from megatron_ssd.config.build import build
from megatron_ssd.config.generation import WorkerConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import ConfigError
from tests.helpers.errors import one_line_error

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


def test_the_default_is_a_single_worker() -> None:
    worker = build(RunConfig, {}).worker.resolved({})
    assert worker.is_alone
    assert list("abc")[worker.share] == list("abc")
    assert worker.label == "worker 0 of 1"


def test_the_configuration_takes_precedence_over_torchrun() -> None:
    assert WorkerConfig().resolved(TORCHRUN) == WorkerConfig(rank=5, world=8, local_rank=1, local_world=4)
    configured = WorkerConfig(rank=2, world=3)
    assert configured.resolved(TORCHRUN) == configured


def test_array_tasks_are_workers_only_if_configured() -> None:
    array = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "4"}
    assert WorkerConfig().resolved(array).is_alone


@pytest.mark.parametrize("world", range(1, 9))
def test_shares_are_a_partition_into_equal_parts(world: int) -> None:
    items = list(range(30))
    shares = [items[WorkerConfig(rank=rank, world=world).share] for rank in range(world)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 2, "world": 2}, "worker.rank = 2, worker.world = 2: ranks are from 0"),
        ({"rank": -1, "world": 2}, "worker.rank = -1"),
        ({"rank": 0, "world": 0}, "worker.rank = 0, worker.world = 0"),
        ({"rank": 0}, "worker.rank = 0, worker.world = null: one needs the other; set both or neither"),
        ({"world": 2}, "worker.rank = null, worker.world = 2"),
        ({"rank": 0, "world": 2, "local_rank": 0}, "worker.local_rank = 0, worker.local_world = null"),
        ({"rank": 0, "world": 2, "local_rank": 0, "local_world": 4}, "worker.local_world = 4: must be at most"),
        ({"local_rank": 0, "local_world": 1}, "worker.local_world = 1: must be at most worker.world (1)"),
    ],
)
def test_contradictions_are_one_line(values: dict[str, int], message: str) -> None:
    with one_line_error(re.escape(message), ConfigError):
        build(RunConfig, {"worker": values})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORLD_SIZE": None}, "RANK = 5, WORLD_SIZE = null"),
        ({"RANK": "8"}, "RANK = 8, WORLD_SIZE = 8"),
        ({"LOCAL_WORLD_SIZE": None}, "LOCAL_RANK = 1, LOCAL_WORLD_SIZE = null"),
        ({"LOCAL_WORLD_SIZE": "9"}, "worker.local_world = 9: must be at most worker.world (8)"),
        ({"RANK": "first"}, "environment variable RANK = 'first': is not a whole number"),
    ],
)
def test_contradicting_variables_are_named(changes: dict[str, str | None], message: str) -> None:
    environment = {name: value for name, value in {**TORCHRUN, **changes}.items() if value is not None}
    with pytest.raises(ConfigError, match=re.escape(message)):
        WorkerConfig().resolved(environment)
