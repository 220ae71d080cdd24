"""Lets ranks wait for longer than a collective may take."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.distributed import distributed_c10d

from megatron_ssd.errors import UserError
from megatron_ssd.runtime.process_groups import on_each_node, on_rank_zero

WORLD_SIZES = (2,)
LIMIT = timedelta(seconds=0.2)
SLOW = 1.0


def prepare(root: Path) -> None:
    root.mkdir()


def run_cases(root: Path) -> None:
    distributed_c10d._set_pg_timeout(LIMIT, dist.group.WORLD)
    results = [on_rank_zero(_slowly)]
    with pytest.raises(UserError, match="a: b; c"):
        on_rank_zero(_refuse)
    results.append(on_each_node(_note(root / "one_node")))
    given = os.environ["LOCAL_WORLD_SIZE"]
    os.environ["LOCAL_WORLD_SIZE"] = "1"  # as if each rank were on a node of its own
    results.append(on_each_node(_note(root / "two_nodes")))
    both = sorted(path.name for path in (root / "two_nodes").iterdir())
    os.environ["LOCAL_WORLD_SIZE"] = given
    (root / f"rank{dist.get_rank()}").write_text(repr((results, both)))
    distributed_c10d._set_pg_timeout(timedelta(minutes=30), dist.group.WORLD)


def _slowly() -> int:
    time.sleep(SLOW)
    return dist.get_rank()


def _refuse() -> None:
    raise UserError("a", rule="b", fix="c")


def _note(folder: Path):  # type: ignore[no-untyped-def]
    def write() -> int:
        folder.mkdir(exist_ok=True)
        (folder / str(dist.get_rank())).touch()
        return dist.get_rank()

    return write
