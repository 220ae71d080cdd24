"""A worker's place is taken while it lives, and free however it died."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ssd.config.generation import WorkerConfig
from megatron_ssd.errors import UserError
from megatron_ssd.generation import worker_files
from megatron_ssd.generation.worker_files import living, seat

SIT = """
import sys, time
from pathlib import Path
from megatron_ssd.config.generation import WorkerConfig
from megatron_ssd.generation.worker_files import seat
with seat(Path(sys.argv[1]), WorkerConfig(rank=1, world=2)):
    print("seated", flush=True)
    time.sleep(600)
"""


def test_a_killed_workers_place_is_free(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SIT, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "seated\n"
        assert living(tmp_path) == [tmp_path / "worker-1-of-2.jsonl"]
        with pytest.raises(UserError, match=r"worker 1 of 2 is at work already"), seat(tmp_path, worker(1, 2)):
            pass
        with pytest.raises(UserError, match=r"set worker\.world=2"), seat(tmp_path, worker(1, 3)):
            pass
        with seat(tmp_path, worker(0, 2)):
            assert len(living(tmp_path)) == 2
        process.kill()
        process.wait()
    assert living(tmp_path) == []
    with seat(tmp_path, worker(1, 3)):
        assert living(tmp_path) == [tmp_path / "worker-1-of-3.jsonl"]


def test_names_tell_rank_and_world(tmp_path: Path) -> None:
    files = [worker_files.row_file(tmp_path, worker(3, 16)), worker_files.span_file(tmp_path, worker(3, 16))]
    assert [path.name for path in files] == ["worker-3-of-16.jsonl", "worker-3-of-16.spans.json"]
    assert {worker_files.name(path) for path in files} == {"worker-3-of-16"}


def worker(rank: int, world: int) -> WorkerConfig:
    return WorkerConfig(rank=rank, world=world)
