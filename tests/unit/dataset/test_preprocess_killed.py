"""Tests that ``tools/preprocess_data.py`` resumes after a SIGKILL."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil

from megatron_ssd.artifacts.manifest import read_manifest
from tests.helpers.paths import ROOT
from tests.helpers.samples_run import numbered, publish_samples

SHARDS, ROWS = 40, 200


def start(run_dir: Path, workers: int) -> subprocess.Popen[bytes]:
    keys = ["model=tiny", "parallel=single", f"run_dir={run_dir}", f"preprocess.num_workers={workers}"]
    command = [sys.executable, "tools/preprocess_data.py", *keys]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_workers_stop_and_the_next_start_ends_with_the_same_bytes(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    shards = [
        [dataclasses.replace(numbered(row % 50), problem_id=f"p{shard}-{row}") for row in range(ROWS)]
        for shard in range(SHARDS)
    ]
    for run_dir in (killed, whole):
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
    # A mark that only survives if the finished part is taken as it is: one more sample than there was.
    counts = json.loads(done[0].read_text())
    done[0].write_text(json.dumps({**counts, "samples": counts["samples"] + 1}))
    assert start(killed, workers=2).wait() == 0
    assert start(whole, workers=1).wait() == 0
    resumed, reference = (read_manifest(run_dir / "dataset") for run_dir in (killed, whole))
    assert resumed.counts["samples"] == reference.counts["samples"] + 1 == SHARDS * ROWS + 1
    for name in ("samples.bin", "samples.idx", "ids.jsonl"):
        assert (killed / "dataset" / name).read_bytes() == (whole / "dataset" / name).read_bytes()
