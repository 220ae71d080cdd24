"""Tests the job scripts on a real SLURM: what its signals, its requeueing and the death of a rank do to a run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from megatron_ssd.problems.stage import read_problems
from tests.helpers.jsonl import samples_by_key
from tests.helpers.paths import ROOT
from tests.helpers.slurm import Slurm, slurm, why_not
from tests.helpers.training_run import COMMAND_LINE, iterations, metrics, write_dataset

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"needs SLURM: {why_not()}")

ITERATIONS = 40
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
OPTIONS = (f"--export=ALL,PYTHON={sys.executable},OMP_NUM_THREADS=1",)
SAMPLING = (
    "+experiment=demo", "parallel=single", "minicode.num_train_problems=60", "minicode.num_test_problems=2",
    "contamination.on_hit=drop", "sampling.num_samples=4", "sampling.max_tokens=64", "engine.data_parallel_size=1",
    "engine.max_model_len=256", "engine.max_num_seqs=8",  # few at a time, so that there is time for signals
)  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def train(cluster: Slurm, run_dir: Path) -> str:
    """Submit a training job with two ranks."""
    overrides = [*COMMAND_LINE, f"training.train_iters={ITERATIONS}", "checkpoint.save_interval=8"]
    return cluster.submit("train.sbatch", *overrides, "parallel=dp2", f"run_dir={run_dir}", options=OPTIONS)


def ranks(run_dir: Path) -> list[psutil.Process]:
    """The training processes of the run, without their launcher."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if f"run_dir={run_dir}" in process.cmdline() and "LOCAL_RANK" in process.environ():
                found.append(process)
    return found


@pytest.mark.usefixtures("fresh_interpreters")
def test_a_training_job_survives_signals_and_names_a_killed_rank(cluster: Slurm, tmp_path: Path) -> None:
    """One job after another of the same run, because every start of training takes several seconds."""
    write_dataset(tmp_path)
    job = train(cluster, tmp_path)
    cluster.wait(job, lambda facts: bool(ranks(tmp_path)))  # a rank has been started, and is importing
    cluster.signal(job, "USR1")
    cluster.wait(job, lambda facts: int(facts["Restarts"]) == 1)
    assert iterations(tmp_path) == 0

    cluster.wait(job, lambda facts: iterations(tmp_path) > 5)
    cluster.signal(job, "USR1")
    cluster.wait(job, lambda facts: int(facts["Restarts"]) == 2)
    done = iterations(tmp_path)
    assert (tmp_path / "checkpoints.partial" / f"iter_{done:07d}").is_dir(), "the last iteration was not saved"

    cluster.wait(job, lambda facts: iterations(tmp_path) > done + 1)
    os.kill(ranks(tmp_path)[-1].pid, signal.SIGKILL)
    facts = cluster.wait(job, lambda facts: facts["JobState"] in ENDED)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "137:0", "2")
    lines = [line for line in cluster.log(job).splitlines() if "was killed by SIGKILL" in line]
    assert len(lines) == 1
    assert lines[0].startswith("error: rank ")

    again = train(cluster, tmp_path)
    assert cluster.wait(again, lambda facts: facts["JobState"] in ENDED)["JobState"] == "COMPLETED"
    assert [record["iteration"] for record in metrics(tmp_path)] == list(range(1, ITERATIONS + 1))


def test_a_task_is_requeued_at_a_signal_and_another_array_does_the_work_of_a_killed_one(
    cluster: Slurm, tiny_hf_model: Path, tmp_path: Path
) -> None:
    run = (*SAMPLING, f"model.path={tiny_hf_model}", f"run_dir={tmp_path}")
    command = [sys.executable, str(ROOT / "launch" / "problems.py"), *run]
    chosen = subprocess.run(command, capture_output=True, text=True, check=False)
    assert chosen.returncode == 0, chosen.stderr
    partial = tmp_path / "samples.partial"

    def written(worker: int) -> int:
        path = partial / f"worker-{worker}-of-2.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    array = cluster.submit("generate.sbatch", *run, options=(*OPTIONS, "--array=0-1"))
    signalled, killed = f"{array}_0", f"{array}_1"
    cluster.wait(signalled, lambda facts: written(0) > 0)
    cluster.signal(signalled, "USR1")
    cluster.wait(killed, lambda facts: written(1) > 0)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "worker.rank=1" in process.cmdline() and process.name().startswith("python"):
                process.kill()
    assert cluster.wait(killed, lambda facts: facts["JobState"] in ENDED)["JobState"] == "FAILED"
    facts = cluster.wait(signalled, lambda facts: facts["JobState"] in ENDED)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1")
    assert not (tmp_path / "samples").exists()
    kept = samples_by_key(partial)

    other = cluster.submit("generate.sbatch", *run, options=(*OPTIONS, "--array=0"))
    assert cluster.wait(f"{other}_0", lambda facts: facts["JobState"] in ENDED)["JobState"] == "COMPLETED"
    final = samples_by_key(tmp_path / "samples")
    assert list(final) == [(problem.id, number) for problem in read_problems(tmp_path) for number in range(4)]
    assert {key: final[key] for key in kept} == kept, "a finished response was sampled again"


def test_a_job_that_is_submitted_from_another_folder_says_so_in_one_line(cluster: Slurm, tmp_path: Path) -> None:
    job = cluster.submit("train.sbatch", f"run_dir={tmp_path}", cwd=tmp_path)
    facts = cluster.wait(job, lambda facts: facts["JobState"] in ENDED)
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "2:0")
    assert cluster.log(job) == f"error: {tmp_path} is not the root of the checkout; submit from there\n"
