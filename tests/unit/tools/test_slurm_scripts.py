"""Tests which commands the SLURM scripts start, with fake versions of srun and scontrol."""

import os
import subprocess

import pytest

from tests.helpers.executables import write_executable
from tests.helpers.paths import ROOT


@pytest.fixture
def cluster(tmp_path):
    """Runs a script of launch/slurm with fake srun and scontrol; returns (exit status, arguments of srun, stderr)."""
    programs = tmp_path / "bin"
    write_executable(programs / "srun", 'printf "%s\\n" "$@"')
    write_executable(programs / "scontrol", "printf 'node7\\nnode8\\n'")
    interpreter = tmp_path / ".venv" / "bin"
    interpreter.mkdir(parents=True)
    write_executable(interpreter / "python", "")
    (tmp_path / "launch").symlink_to(ROOT / "launch")

    def start(script: str, *arguments: str, **variables: str) -> tuple[int, list[str], str]:
        environment = {"PATH": f"{programs}:/usr/bin:/bin", "SLURM_ARRAY_JOB_ID": "7", "SLURM_JOB_ID": "9", **variables}
        command = ["bash", str(ROOT / "launch" / "slurm" / script), *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=30)
        return done.returncode, done.stdout.splitlines(), done.stderr

    return start


def test_a_stage_runs_with_its_arguments(cluster):
    status, arguments, _ = cluster("stage.sbatch", "launch/problems.py", "+model=tiny", "run_dir=a b")
    assert status == 0
    assert arguments[-4:] == [".venv/bin/python", "launch/problems.py", "+model=tiny", "run_dir=a b"]


def test_without_a_stage_the_script_explains_how_to_submit_one(cluster):
    status, arguments, error = cluster("stage.sbatch")
    assert (status, arguments) == (2, [])
    assert "usage: sbatch [OPTIONS] launch/slurm/stage.sbatch SCRIPT OVERRIDES..." in error


def test_lines_of_setup_run_before_the_stage(cluster):
    setup = "greeting='hello from the node'\nexport PYTHON=/opt/python-$greeting_or_nothing\necho \"$greeting\""
    _, lines, error = cluster("stage.sbatch", "launch/problems.py", SETUP=setup)
    assert "hello from the node" in lines
    assert "there is no /opt/python- in" in error


def array(first: int, last: int, task: int, count: int | None = None) -> dict[str, str]:
    numbers = {"ID": task, "MIN": first, "MAX": last, "COUNT": count or last - first + 1}
    return {f"SLURM_ARRAY_TASK_{name}": str(number) for name, number in numbers.items()}


@pytest.mark.parametrize(("first", "last", "task", "rank"), [(0, 7, 0, 0), (0, 7, 7, 7), (1, 3, 2, 1)])
def test_the_tasks_of_an_array_are_the_workers_of_one_run(cluster, first, last, task, rank):
    status, arguments, _ = cluster(
        "stage.sbatch", "launch/generate.py", "+model=tiny", "run_dir=runs/with blank", **array(first, last, task)
    )
    assert status == 0
    assert arguments[-6:] == [
        ".venv/bin/python", "launch/generate.py", "+model=tiny", "run_dir=runs/with blank",
        f"worker.rank={rank}", f"worker.world={last - first + 1}",
    ]  # fmt: skip


def test_an_array_with_gaps_is_refused(cluster):
    status, arguments, error = cluster("stage.sbatch", "launch/generate.py", **array(0, 6, 2, count=4))
    assert (status, arguments) == (2, [])
    assert error == "error: --array has gaps between 0 and 6; worker ranks have none\n"


def test_training_uses_the_first_node_and_the_allocations_world_size(cluster):
    status, arguments, _ = cluster(
        "train.sbatch", "+model=qwen3_30b", "run_dir=runs/with blank",
        SLURM_JOB_ID="123456", SLURM_JOB_NODELIST="node[7-8]", SLURM_NNODES="2", SLURM_GPUS_ON_NODE="8",
    )  # fmt: skip
    assert status == 0
    assert "--rdzv-endpoint=node7:23456" in arguments
    assert {"--nnodes=2", "--nproc-per-node=8", "--rdzv-id=123456", "--rdzv-backend=c10d"} < set(arguments)
    assert arguments[-4:] == [
        "launch/train.py", "+model=qwen3_30b", "run_dir=runs/with blank", "parallel.world_size=16",
    ]  # fmt: skip


@pytest.mark.parametrize(("script", "job"), [("train", "7"), ("stage", "7_3")])
@pytest.mark.parametrize(("status", "requeued"), [(75, True), (1, False), (130, False)])
def test_a_stage_that_a_signal_stopped_is_requeued(cluster, tmp_path, script, job, status, requeued):
    write_executable(tmp_path / "bin" / "srun", f"exit {status}")
    write_executable(tmp_path / "bin" / "scontrol", 'echo "scontrol $*"')
    ended, lines, _ = cluster(
        f"{script}.sbatch", "launch/generate.py",
        SLURM_JOB_ID="7", SLURM_JOB_NODELIST="node7", SLURM_NNODES="1", **array(1, 3, 3),
    )  # fmt: skip
    assert ended == status
    assert (f"scontrol requeue {job}" in lines) is requeued


@pytest.mark.parametrize(
    ("missing", "error"),
    [("launch", "is not the root of the checkout; submit from there"), (".venv", "there is no .venv/bin/python in")],
)
@pytest.mark.parametrize("script", ["train", "stage"])
def test_a_job_that_was_submitted_from_elsewhere_says_so_in_one_line(cluster, tmp_path, script, missing, error):
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node7", "SLURM_NNODES": "1", **array(1, 1, 1)}
    status, started, said = cluster(f"{script}.sbatch", "launch/generate.py", **job)
    assert (status, started) == (2, [])
    assert error in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("script", ["stage", "train"])
def test_the_step_of_a_job_gets_all_of_its_cores(cluster, script):
    job = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node7", "SLURM_NNODES": "1", **array(1, 1, 1)}
    for more, expected in (({"SLURM_CPUS_ON_NODE": "224"}, ["--cpus-per-task=224"]), ({}, [])):
        status, arguments, _ = cluster(f"{script}.sbatch", "launch/generate.py", **job, **more)
        assert status == 0
        assert [argument for argument in arguments if "cpus" in argument] == expected


def test_a_container_gets_the_checkout_and_more_mounts(cluster, tmp_path):
    status, arguments, _ = cluster(
        "train.sbatch", IMAGE="/images/train.sqsh", MOUNTS="/data:/data",
        SLURM_JOB_ID="1", SLURM_JOB_NODELIST="node7", SLURM_NNODES="1",
    )  # fmt: skip
    assert status == 0
    here = os.path.realpath(tmp_path)
    assert "--container-image=/images/train.sqsh" in arguments
    assert f"--container-mounts={here}:{here},/data:/data" in arguments
    assert "python3" in arguments
