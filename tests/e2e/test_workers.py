"""Tests that sampling with the real engine can be resumed by a different number of workers."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil

from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.generation.plan import request_seed
from megatron_ssd.problems.stage import read_problems
from megatron_ssd.process import DIE_WITH_PARENT
from tests.helpers.jsonl import samples_by_key
from tests.helpers.paths import ROOT

NUM_PROBLEMS, NUM_SAMPLES = 60, 4
RUN = (
    "+experiment=demo",
    "parallel=single",  # the model has one key-value head
    f"minicode.num_train_problems={NUM_PROBLEMS}",
    "minicode.num_test_problems=2",
    "contamination.on_hit=drop",
    f"sampling.num_samples={NUM_SAMPLES}",
    "sampling.max_tokens=64",
    "engine.data_parallel_size=1",
    "engine.max_model_len=256",
    "engine.max_num_seqs=8",  # few at a time, so that there is time to kill the workers
    "generation.shard_rows=100",
)


def start(script: str, *arguments: str, log: Path, launcher: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """Start ``script`` and append its output to ``log``."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *launcher, str(ROOT / script), *RUN, *arguments],
            env={**os.environ, DIE_WITH_PARENT: "1"}, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip


def kill_tree(root: int) -> None:
    """Kill a process and its descendants with SIGKILL, as on a machine that fails."""
    processes = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes)


def test_killed_workers_are_resumed_by_a_different_number_of_workers(tiny_hf_model: Path, tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log"
    where = (f"run_dir={run_dir}", f"model.path={tiny_hf_model}")
    assert start("launch/problems.py", *where, log=log).wait(timeout=120) == 0, log.read_text()[-3000:]
    problems = [problem.id for problem in read_problems(run_dir)]
    planned = [(problem, number) for problem in problems for number in range(NUM_SAMPLES)]

    seed = random.SystemRandom().randrange(10**6)
    stop_at = random.Random(seed).randrange(1, len(planned) * 3 // 4)
    print(f"seed {seed}: the only worker is killed once {stop_at} of {len(planned)} samples are written")
    only = start("launch/generate.py", *where, log=log)
    partial = run_dir / "samples.partial"
    while len(samples_by_key(partial)) < stop_at:
        assert only.poll() is None, f"ended before it could be killed:\n{log.read_text()[-6000:]}"
        time.sleep(0.02)
    kill_tree(only.pid)
    kept = samples_by_key(partial)
    assert stop_at <= len(kept) < len(planned)
    assert [path.name for path in partial.glob("*.jsonl")] == ["worker-0-of-1.jsonl"]

    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    pair = start("launch/generate.py", *where, log=log, launcher=torchrun)
    assert pair.wait(timeout=400) == 0, log.read_text()[-3000:]
    final = samples_by_key(run_dir / "samples")
    assert list(final) == planned
    assert {key: final[key] for key in kept} == kept
    demo_seed = read_manifest(run_dir / "samples").config["seed"]
    assert all(sample["seed"] == request_seed(demo_seed, *key) for key, sample in final.items())
    output = log.read_text()
    assert output.count("samples: published") == 1
    assert output.count("has finished its part") + output.count("samples: up to date") == 1
