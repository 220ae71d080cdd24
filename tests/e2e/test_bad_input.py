"""Tests for user errors: each is one line with the value, the rule and the fix, and does not destroy finished work."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.scripts import run_script
from tests.helpers.tiny_hf import MODELS, write_hf_config

from .conftest import SMALL, Loop


def assert_one_line(done: subprocess.CompletedProcess[str], *parts: str, status: int = 2) -> None:
    """Check that a run ended with ``status`` and one error line that contains ``parts``, without a traceback."""
    assert done.returncode == status, done.stderr[-3000:]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in errors[0]


@pytest.mark.parametrize("script", ["launch/train.py", "launch/pipeline.py"])  # other scripts: tests/unit/cli
def test_an_unknown_key(script: str) -> None:
    done = run_script(script, "+experiment=demo", "training.train_iter=3")
    assert_one_line(done, "training.train_iter = 3", "no such key", "did you mean training.train_iters?")


def test_a_traceback_is_printed_on_request() -> None:
    done = run_script("launch/generate.py", "seed=x", "--traceback")
    assert "Traceback" in done.stderr
    assert "seed = 'x'" in done.stderr


def test_a_missing_model_folder(tmp_path: Path) -> None:
    done = run_script("launch/generate.py", *SMALL, f"run_dir={tmp_path}/run", f"model.path={tmp_path}/nowhere")
    assert_one_line(done, f"{tmp_path}/nowhere")
    assert not (tmp_path / "run" / "samples").exists()


def test_model_path_replaces_the_pipelines_own_base_model(tmp_path: Path) -> None:
    named = [*SMALL, f"base.base_dir={tmp_path}/base", f"run_dir={tmp_path}/run", "--until=samples"]
    assert_one_line(run_script("launch/pipeline.py", *named, f"model.path={tmp_path}/nope"),
                    f"model.path = {tmp_path}/nope", "does not exist")  # fmt: skip
    assert not list(tmp_path.iterdir())  # reported before any work
    mine = tmp_path / "mine"
    write_hf_config(mine, MODELS["qwen3"])
    done = run_script("launch/pipeline.py", *named, f"model.path={mine}")
    assert f"the base model is model.path = {mine}; base.experiment = demo_base is not used" in done.stderr
    assert (tmp_path / "run" / "problems").is_dir()
    assert done.returncode == 2  # the folder is empty
    assert not (tmp_path / "base").exists()


def test_training_without_cuda_says_what_is_missing(tmp_path: Path) -> None:
    done = run_script("launch/train.py", "+model=qwen3_30b", f"run_dir={tmp_path}/run")
    assert_one_line(done, "cluster.device = cuda", "GPU", "dry_run=true")


def test_missing_problems_are_reported_before_any_work(tmp_path: Path) -> None:
    named = ["problems=rstar_coder", f"problems.path={tmp_path}/no_rows", f"base.base_dir={tmp_path}/base"]
    assert_one_line(run_script("launch/pipeline.py", *SMALL, *named, f"run_dir={tmp_path}/run"), f"{tmp_path}/no_rows")
    named = [
        "benchmark=livecodebench",
        f"benchmark.sets.livecodebench.path={tmp_path}/no.jsonl",
        f"base.base_dir={tmp_path}/base",
    ]
    assert_one_line(run_script("launch/pipeline.py", *SMALL, *named, f"run_dir={tmp_path}/run"), f"{tmp_path}/no.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["FILE", "FILE/x", "/proc/nope"])
def test_a_run_dir_that_cannot_be_made(tmp_path: Path, below: str) -> None:
    (tmp_path / "FILE").write_text("mine")
    run_dir = tmp_path / below
    assert_one_line(run_script("launch/problems.py", *SMALL, f"run_dir={run_dir}"), str(run_dir), "use another run_dir")
    assert (tmp_path / "FILE").read_text() == "mine"


def test_a_missing_bubblewrap(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("git", "g++", "gcc", "env"):
        if (found := shutil.which(name)) is not None:
            (tools / name).symlink_to(found)
    done = run_script(
        "launch/pipeline.py", *SMALL, f"run_dir={tmp_path}/run", f"base.base_dir={tmp_path}", path=str(tools)
    )
    assert_one_line(done, "evaluation.sandbox.kind = bubblewrap", "bwrap is not on PATH", "install")
    assert not list(tmp_path.glob("*/dataset*"))  # reported before any work


def test_a_broken_line_in_the_samples(loop: Loop, finished: Path, tmp_path: Path) -> None:
    run_dir = loop.copy(finished, tmp_path / "run", "samples")
    shard = sorted((run_dir / "samples").glob("*.jsonl"))[1]
    lines = shard.read_text().splitlines(keepends=True)
    shard.write_text("".join([*lines[:2], lines[2][:40] + "\n", *lines[3:]]))
    done = run_script("tools/preprocess_data.py", *SMALL, f"run_dir={run_dir}")
    assert_one_line(done, f"{shard.name}:3", "JSON", "fix that line")
    shard.write_text("".join(lines[:2] + lines[3:]))
    done = run_script("tools/preprocess_data.py", *SMALL, f"run_dir={run_dir}")
    assert_one_line(done, f"{shard.name} has {len(lines) - 1} of them", "were published", "put the files back")
    shard.write_text("".join(lines))  # fixed: the same command resumes
    again = run_script("tools/preprocess_data.py", *SMALL, f"run_dir={run_dir}")
    assert again.returncode == 0, again.stderr[-3000:]


def test_another_vocabulary_size_than_the_models(finished: Path, loop: Loop, tmp_path: Path) -> None:
    run_dir = loop.copy(finished, tmp_path / "run", "samples", "dataset")
    base = next(loop.base_dir.glob("*/export"))
    done = run_script("launch/train.py", *SMALL, f"run_dir={run_dir}", f"model.path={base}", "model.vocab_size=256")
    assert_one_line(done, "model.vocab_size = 256", "config.json says 512", "leave out model.vocab_size")
    assert not list(run_dir.glob("checkpoints*/iter_*"))


def test_a_full_disk(finished: Path) -> None:
    """On a full file system of 1 MiB. The samples are kept, and the same command succeeds once there is free space."""
    preprocess = " ".join([sys.executable, str(ROOT / "tools/preprocess_data.py"), *SMALL, "run_dir=/mnt"])
    program = f"""
        cp -r {finished}/samples /mnt/
        cat /dev/zero > /mnt/filler 2> /dev/null
        {preprocess}; echo "full $?"
        rm /mnt/filler
        {preprocess}; echo "space $?"
        ls /mnt /mnt/dataset
    """
    mounts = ["--dev-bind", "/", "/", "--size", str(1 << 20), "--tmpfs", "/mnt"]
    done = subprocess.run(
        ["bwrap", *mounts, "sh", "-c", program], capture_output=True, text=True, timeout=300, check=False
    )
    assert "full 1\nspace 0\n" in done.stdout, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert "error: disk full" in done.stderr
    assert "finished work is kept; free some space" in done.stderr
    assert {"samples.bin", "samples.idx", "manifest.json"} <= set(done.stdout.split())


def test_a_port_in_use(finished: Path, loop: Loop, tmp_path: Path) -> None:
    run_dir = loop.copy(finished, tmp_path / "run", "samples", "dataset")
    base = next(loop.base_dir.glob("*/export"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        done = subprocess.run(
            [sys.executable, str(ROOT / "launch/train.py"), *SMALL, f"run_dir={run_dir}",
             f"model.path={base}"],
            env={**os.environ, **world}, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    assert_one_line(done, f"MASTER_PORT = {port}", "another program uses that port", "torchrun --master-port")
