"""Tests that ``tools/preprocess_data.py`` resumes after a SIGKILL."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from msgspec.structs import replace

from megatron_ssd.artifacts.manifest import read_manifest
from tests.helpers.paths import ROOT
from tests.helpers.samples_run import numbered, publish_samples

SHARDS, SHARD_SIZE = 40, 200


def start(run_dir: Path, workers: int) -> subprocess.Popen[bytes]:
    keys = ["model=tiny", "parallel=single", f"run_dir={run_dir}", f"preprocess.num_workers={workers}"]
    command = [sys.executable, "tools/preprocess_data.py", *keys]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.usefixtures("fresh_interpreters")
def test_workers_end_with_the_script_and_the_next_start_gives_the_same_bytes(tmp_path: Path) -> None:
    killed, uninterrupted = tmp_path / "killed", tmp_path / "uninterrupted"
    shards = [
        [replace(numbered(i % 50), problem_id=f"p{shard}-{i}") for i in range(SHARD_SIZE)] for shard in range(SHARDS)
    ]
    for run_dir in (killed, uninterrupted):
        publish_samples(run_dir, shards)
    process = start(killed, workers=3)
    parts, deadline = killed / "dataset.partial" / "parts", time.monotonic() + 120
    while not len(list(parts.glob("*.json"))) >= 3:
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert len(workers) == 3
    psutil.wait_procs(workers, timeout=60)
    assert not [worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]

    done = sorted(parts.glob("*.json"))
    assert 3 <= len(done) < SHARDS
    # One sample is added to the counts of a finished part: the sum shows it only if the part is reused.
    counts = json.loads(done[0].read_text())
    done[0].write_text(json.dumps({**counts, "samples": counts["samples"] + 1}))
    assert start(killed, workers=2).wait() == 0
    assert start(uninterrupted, workers=1).wait() == 0
    resumed, reference = (read_manifest(run_dir / "dataset") for run_dir in (killed, uninterrupted))
    assert resumed.counts["samples"] == reference.counts["samples"] + 1 == SHARDS * SHARD_SIZE + 1
    for name in ("samples.bin", "samples.idx", "ids.jsonl"):
        assert (killed / "dataset" / name).read_bytes() == (uninterrupted / "dataset" / name).read_bytes()
