"""Tests the job scripts on a real SLURM: what its signals, its requeueing and the death of a rank do to a run."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from megatron_ssd.cli.compose import text_override
from megatron_ssd.problems.stage import read_problems
from tests.helpers.jsonl import samples_by_key
from tests.helpers.slurm import Slurm, slurm, why_not
from tests.helpers.training_run import COMMAND_LINE, iterations, metrics, write_dataset

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"needs SLURM: {why_not()}")

ITERATIONS = 120
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
OPTIONS = (f"--export=ALL,PYTHON={sys.executable},OMP_NUM_THREADS=1",)
SMALL_RUN = (
    "+experiment=demo", "parallel=dp2", "minicode.num_train_problems=60", "minicode.num_test_problems=4",
    "contamination.on_hit=drop", "sampling.num_samples=4", "sampling.max_tokens=64", "engine.data_parallel_size=1",
    "engine.max_model_len=256", "engine.max_num_seqs=4",  # few at a time, so that there is time for signals
    "training.train_iters=4", "training.global_batch_size=8", "training.micro_batch_size=4", "training.seq_length=256",
    "optimizer.lr_warmup_iters=2", "evaluation.num_samples=2", "evaluation.max_tokens=64",
    "evaluation.temperatures=[1.0]", "evaluation.top_ps=[0.8]", "cluster.cpu_options=['--mem=0']",
    "cluster.environment={OMP_NUM_THREADS: '1'}",
)  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def train(cluster: Slurm, run_dir: Path) -> str:
    """Submit a training job with two ranks."""
    overrides = [
        *COMMAND_LINE,
        f"training.train_iters={ITERATIONS}",
        "checkpoint.save_interval=8",
        "training.hang_seconds=10",
    ]
    return cluster.submit("train.sbatch", *overrides, "parallel=dp2", f"run_dir={run_dir}", options=OPTIONS)


def ranks(run_dir: Path) -> list[psutil.Process]:
    """The training processes of the run, without their launcher."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if f"run_dir={run_dir}" in process.cmdline() and "LOCAL_RANK" in process.environ():
                found.append(process)
    return found


def submit(cluster: Slurm, *overrides: str, **variables: str) -> dict[str, str]:
    """Submit a run; returns stage -> job."""
    done = cluster.run(sys.executable, "launch/submit.py", *overrides, **variables)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    return {line[0]: line[1] for line in lines[1:] if line[1].isdigit()}


def status(cluster: Slurm, *overrides: str) -> dict[str, str]:
    """Stage -> its state in the table of ``--status``."""
    done = cluster.run(sys.executable, "launch/submit.py", *overrides, "--status")
    assert done.returncode == 0, done.stderr
    return {line.split()[0]: re.split(r"  +", line)[1] for line in done.stdout.splitlines()[1:]}


def written(partial: Path, worker: int) -> int:
    """Records that a worker of two has written."""
    path = partial / f"worker-{worker}-of-2.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.usefixtures("fresh_interpreters")
def test_a_training_job_survives_signals_and_a_hanging_rank_and_names_a_killed_one(
    cluster: Slurm, tmp_path: Path
) -> None:
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
    stopped = ranks(tmp_path)[-1]
    stopped.suspend()  # the other one waits for it
    cluster.wait(job, lambda facts: len(ranks(tmp_path)) == 1)  # that one has given up
    stopped.resume()
    cluster.wait(job, lambda facts: int(facts["Restarts"]) == 3)
    assert "has not ended after" in cluster.log(job)
    assert "in run_step" in cluster.log(job), "no stack was printed"

    done = iterations(tmp_path)
    cluster.wait(job, lambda facts: iterations(tmp_path) > done + 1)
    os.kill(ranks(tmp_path)[-1].pid, signal.SIGKILL)
    facts = cluster.wait(job, lambda facts: facts["JobState"] in ENDED)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "137:0", "3")
    lines = [line for line in cluster.log(job).splitlines() if "was killed by SIGKILL" in line]
    assert len(lines) == 1
    assert lines[0].startswith("error: rank ")

    again = train(cluster, tmp_path)
    assert cluster.wait(again, lambda facts: facts["JobState"] in ENDED)["JobState"] == "COMPLETED"
    assert [record["iteration"] for record in metrics(tmp_path)] == list(range(1, ITERATIONS + 1))


def test_a_submitted_run_survives_a_signal_and_a_killed_task_and_goes_on_when_it_is_submitted_again(
    cluster: Slurm, tiny_hf_model: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "a=b,c"  # both characters have a meaning in Hydra's grammar
    run = (*SMALL_RUN, f"model.path={tiny_hf_model}", text_override("run_dir", str(run_dir)))
    first = submit(cluster, *run, "cluster.samples_nodes=2", RANK="3", WORLD_SIZE="4")  # left over in the shell
    samples = first["samples"]
    refused = cluster.run(sys.executable, "launch/submit.py", *run)
    assert refused.returncode == 2
    assert "has jobs that have not ended" in refused.stderr
    assert status(cluster, *run)["dataset"] == "pending (Dependency)"

    partial = run_dir / "samples.partial"
    cluster.wait(f"{samples}_0", lambda facts: written(partial, 0) > 0)
    cluster.signal(f"{samples}_0", "USR1")
    cluster.wait(f"{samples}_1", lambda facts: written(partial, 1) > 0)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "worker.rank=1" in process.cmdline() and process.name().startswith("python"):
                process.kill()
    assert cluster.wait(f"{samples}_1", lambda facts: facts["JobState"] in ENDED)["JobState"] == "FAILED"
    facts = cluster.wait(f"{samples}_0", lambda facts: facts["JobState"] in ENDED)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1")
    assert cluster.wait(first["report"], lambda facts: facts["JobState"] in ENDED)["JobState"] == "CANCELLED"
    assert not (run_dir / "samples").exists()
    done = samples_by_key(partial)

    again = submit(cluster, *run, "cluster.eval_nodes=2")
    assert list(again) == ["samples", "dataset", "checkpoints", "export", "eval", "report"]
    assert cluster.wait(again["report"], lambda facts: facts["JobState"] in ENDED)["JobState"] == "COMPLETED", status(
        cluster, *run
    )
    assert set(status(cluster, *run).values()) == {"done"}
    final = samples_by_key(run_dir / "samples")
    assert list(final) == [(problem.id, number) for problem in read_problems(run_dir) for number in range(4)]
    assert {key: final[key] for key in done} == done, "a finished response was sampled again"
    assert submit(cluster, *run) == {}


def test_a_job_that_is_submitted_from_another_folder_says_so_in_one_line(cluster: Slurm, tmp_path: Path) -> None:
    job = cluster.submit("train.sbatch", f"run_dir={tmp_path}", cwd=tmp_path)
    facts = cluster.wait(job, lambda facts: facts["JobState"] in ENDED)
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "2:0")
    assert cluster.log(job) == f"error: {tmp_path} is not the root of the checkout; submit from there\n"
