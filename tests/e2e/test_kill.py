"""Tests that each stage resumes after SIGKILL, and one after SIGUSR1: its output is complete, no work is repeated."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

from safetensors import safe_open

from megatron_ssd.artifacts.hashing import sha256_file
from megatron_ssd.artifacts.manifest import FILE_NAME, manifest_json, read_manifest
from megatron_ssd.generation.plan import request_seed
from megatron_ssd.problems.stage import read_problems
from tests.helpers.jsonl import complete_records, samples_by_key, write_jsonl

from .conftest import PARALLEL, Interrupted, Loop

SHARD_BYTES = "export.max_shard_bytes=100000"
WORKERS = "preprocess.num_workers=2"


def snapshot(folder: Path, pattern: str) -> dict[str, tuple[int, int]]:
    """Name -> (inode, time of the last write), which changes if a file is written again."""
    stats = {path: path.stat() for path in folder.rglob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): (s.st_ino, s.st_mtime_ns) for path, s in stats.items()}


def tensors(folder: Path) -> dict[str, bytes]:
    """Raw values of every tensor in the folder's safetensors files."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            found.update({name: file.get_tensor(name).tobytes() for name in file.keys()})  # noqa: SIM118
    return found


def multiply_samples(folder: Path, times: int) -> None:
    """Repeat the published samples ``times`` times under new problem ids, so that converting them takes a while."""
    originals = [record for path in sorted(folder.glob("*.jsonl")) for record in complete_records(path)]
    for path in folder.glob("*.jsonl"):
        path.unlink()
    for number in range(times):
        copies = [{**record, "problem_id": f"{record['problem_id']}-{number}"} for record in originals]
        write_jsonl(folder / f"shard-{number:05}.jsonl", copies)
    files = sorted(folder.glob("*.jsonl"))
    outputs = [{"path": f.name, "sha256": sha256_file(f), "bytes": f.stat().st_size} for f in files]
    manifest = dataclasses.replace(read_manifest(folder), outputs=outputs, counts={"samples": len(originals) * times})
    (folder / FILE_NAME).write_text(manifest_json(manifest))


def test_sampling(interrupted: Interrupted) -> None:
    final = samples_by_key(interrupted.run_dir / "samples")
    assert len(interrupted.samples) >= 8
    assert {key: final[key] for key in interrupted.samples} == interrupted.samples
    problems = [problem.id for problem in read_problems(interrupted.run_dir)]
    assert list(final) == [(problem, 0) for problem in problems]
    seed = read_manifest(interrupted.run_dir / "samples").config["seed"]
    assert all(record["seed"] == request_seed(seed, *key) for key, record in final.items())


def test_preprocessing(loop: Loop, finished: Path, tmp_path: Path) -> None:
    run_dir = loop.copy(finished, tmp_path / "run", "problems", "samples")
    multiply_samples(run_dir / "samples", times=100)
    undisturbed = loop.copy(run_dir, tmp_path / "undisturbed", "problems", "samples")
    parts = run_dir / "dataset.partial" / "parts"
    loop.kill_when(run_dir, lambda: len(list(parts.glob("*.json"))) >= 3, "--until=dataset", WORKERS)
    done = sorted(parts.glob("*.json"))
    assert 3 <= len(done) < 100
    # One additional sample, which is counted only if the finished part is reused.
    counts = json.loads(done[0].read_text())
    done[0].write_text(json.dumps({**counts, "samples": counts["samples"] + 1}))
    is_further = lambda: len(list(parts.glob("*.json"))) >= len(done) + 3  # noqa: E731
    assert loop.kill_when(run_dir, is_further, "--until=dataset", WORKERS, number=signal.SIGUSR1) == 75
    assert len(list(parts.glob("*.json"))) < 100
    loop.run(run_dir, "--until=dataset")
    loop.run(undisturbed, "--until=dataset")
    resumed, reference = (read_manifest(folder / "dataset") for folder in (run_dir, undisturbed))
    assert resumed.counts["samples"] == reference.counts["samples"] + 1
    for name in ("samples.bin", "samples.idx", "ids.jsonl"):
        assert (run_dir / "dataset" / name).read_bytes() == (undisturbed / "dataset" / name).read_bytes()


def test_training(loop: Loop, finished: Path, tmp_path: Path) -> None:
    run_dir = loop.copy(finished, tmp_path / "run", "problems", "samples", "dataset")
    partial = run_dir / "checkpoints.partial"
    loop.kill_when(
        run_dir, lambda: len(complete_records(partial / "metrics.jsonl")) >= 5, "--until=checkpoints", *PARALLEL
    )
    checkpoint = snapshot(partial / "iter_0000004", "*")
    assert checkpoint, "there is no checkpoint of iteration 4"
    again = loop.run(run_dir, "--until=checkpoints", *PARALLEL)
    assert "resuming from iteration" in again.stderr
    assert snapshot(run_dir / "checkpoints" / "iter_0000004", "*") == checkpoint
    metrics = [complete_records(folder / "checkpoints" / "metrics.jsonl") for folder in (run_dir, finished)]
    losses = [[(record["iteration"], record["loss"], record["grad_norm"]) for record in found] for found in metrics]
    assert losses[0] == losses[1]  # bitwise, with each iteration once and in order


def test_export(loop: Loop, finished: Path, tmp_path: Path) -> None:
    run_dir = loop.copy(finished, tmp_path / "run", "problems", "samples", "dataset", "checkpoints")
    partial = run_dir / "export.partial"
    loop.kill_when(run_dir, lambda: any(partial.glob("model-*.safetensors")), "--until=export", SHARD_BYTES)
    written = snapshot(partial, "model-*.safetensors")
    assert written
    assert not (run_dir / "export").exists()
    loop.run(run_dir, "--until=export", SHARD_BYTES)
    final = snapshot(run_dir / "export", "model-*.safetensors")
    assert len(final) > 5
    assert {name: final[name] for name in written} == written
    assert tensors(run_dir / "export") == tensors(finished / "export")


def test_evaluation(interrupted: Interrupted) -> None:
    generations, verdicts = (interrupted.run_dir / "eval" / "minicode" / kind for kind in ("generations", "verdicts"))
    assert sum(map(len, interrupted.generations["ssd"].values())) >= 10
    for model, files in interrupted.generations.items():
        for name, before in files.items():
            after = complete_records(generations / model / name)
            assert all(record in after for record in before), "a finished response was sampled again"
    for model in ("base", "ssd"):
        for path in (generations / model).glob("*.jsonl"):
            sampled = {(record["problem_id"], record["sample_index"]) for record in complete_records(path)}
            graded = [
                (record["problem_id"], record["sample_index"])
                for record in complete_records(verdicts / model / path.name)
            ]
            assert len(sampled) == 12 * 5
            assert sorted(graded) == sorted(sampled)
