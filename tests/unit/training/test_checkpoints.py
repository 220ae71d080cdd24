"""Tests for the checkpoints of real training runs."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.checkpoint import CheckpointException

from launch.train import train as run_train
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import Requeue, UserError
from megatron_ssd.training.checkpoint_folder import list_checkpoints, read_facts
from megatron_ssd.training.distcp_file import DistcpFile
from megatron_ssd.training.shutdown import GracefulShutdown
from tests.helpers.devices import without_gpu
from tests.helpers.stopped_training import train_until_stopped
from tests.helpers.training_run import metrics, training_config, write_dataset

pytestmark = without_gpu

STOPPED = {"training": {"train_iters": 6, "ema_decay": 0.5}, "checkpoint": {"save_interval": 2}}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped after 5 of 6 iterations, with checkpoints 2, 4 and 5. Tests change only copies of it."""
    run_dir = tmp_path_factory.mktemp("stopped")
    write_dataset(run_dir)
    train_until_stopped(training_config(run_dir, **_copy(STOPPED)), iteration=5, request=Requeue)
    return run_dir


@pytest.fixture
def run_dir(stopped: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def _copy(changes: dict[str, Any]) -> dict[str, Any]:
    return {key: dict(value) for key, value in changes.items()}


def config_of(run_dir: Path, **checkpoint: Any) -> RunConfig:
    changes = _copy(STOPPED)
    changes["checkpoint"] |= checkpoint
    return training_config(run_dir, **changes)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("iter_*"))


def test_a_checkpoint_names_its_files_with_their_hashes(run_dir: Path) -> None:
    path = run_dir / "checkpoints.partial" / "iter_0000005"
    facts = read_facts(path)
    assert (facts.iteration, facts.optimizer, facts.layout["world"]) == (5, "distributed", 1)
    assert "megatron-core" in facts.versions
    assert set(facts.files) == {file.name for file in path.iterdir()} - {"checkpoint.json"}
    assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) for file in facts.files.values())


def distcp(path: Path) -> Path:
    return max(path.glob("*.distcp"), key=lambda file: file.stat().st_size)


def truncated(path: Path) -> str:
    largest = distcp(path)
    with largest.open("rb+") as file:
        file.truncate(1000)
    return f"{largest.name} has 1000 bytes"


def flipped(path: Path) -> str:
    file = distcp(path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    return f"{file.name} is not what was written"


def missing(path: Path) -> str:
    distcp(path).rename(path.parent / "elsewhere")
    return "is missing"


def emptied(path: Path) -> str:
    (path / ".metadata").write_bytes(b"")
    return ".metadata has 0 bytes"


def without_common(path: Path) -> str:
    name = "common.pt" if (path / "common.pt").exists() else "metadata.json"
    (path / name).unlink()
    return f"{name} is missing"


def bad_facts(path: Path) -> str:
    (path / "checkpoint.json").write_text('{"iteration": 5')
    return "checkpoint.json cannot be parsed"


@pytest.mark.parametrize("damage", [truncated, flipped, missing, emptied, without_common, bad_facts])
def test_a_damaged_checkpoint_is_an_error_that_names_it(run_dir: Path, damage: Callable[[Path], str]) -> None:
    path = run_dir / "checkpoints.partial" / "iter_0000005"
    expected = damage(path)
    before = names(path.parent)
    with pytest.raises(UserError) as caught:
        run_train(config_of(run_dir))
    message = str(caught.value)
    assert f"checkpoint {path}: is broken" in message
    assert expected in message
    assert "\n" not in message
    assert names(path.parent) == before


def test_a_checkpoint_of_format_1_is_an_error_of_one_line(run_dir: Path) -> None:
    path = run_dir / "checkpoints.partial" / "iter_0000005"
    facts = json.loads((path / "checkpoint.json").read_text())
    del facts["format_version"]
    (path / "checkpoint.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="has format 1, and training resumes from format") as caught:
        run_train(config_of(run_dir))
    assert "\n" not in str(caught.value)


SIZES = [("tensor", 2), ("pipeline", 2), ("expert", 2), ("gradient_bucket", 40), ("transformer_engine", 1)]


@pytest.mark.parametrize(("size", "value"), SIZES)
def test_shards_of_other_buckets_are_refused_with_both_layouts(run_dir: Path, size: str, value: int) -> None:
    path = run_dir / "checkpoints.partial" / "iter_0000005" / "checkpoint.json"
    facts = json.loads(path.read_text())
    here = facts["layout"][size]
    facts["layout"][size] = value
    path.write_text(json.dumps(facts))
    with pytest.raises(UserError) as caught:
        run_train(config_of(run_dir))
    message = str(caught.value)
    assert "\n" not in message
    for part in ("dp_reshardable", f"{size} {value}", f"{size} {here}", "optimizer_format=fully_reshardable"):
        assert part in message


def test_on_broken_previous_resumes_from_the_previous_checkpoint_with_the_same_losses(
    run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_dataset(tmp_path / "uninterrupted")
    run_train(config_of(tmp_path / "uninterrupted"))
    flipped(run_dir / "checkpoints.partial" / "iter_0000005")
    with caplog.at_level(logging.INFO):
        run_train(config_of(run_dir, on_broken="previous"))
    assert "iter_0000005.broken-1, resuming from the one before" in caplog.text
    assert "resuming from iteration 4" in caplog.text
    assert names(run_dir / "checkpoints") == [
        "iter_0000002", "iter_0000004", "iter_0000005.broken-1", "iter_0000006",
    ]  # fmt: skip
    assert _numbers(run_dir) == _numbers(tmp_path / "uninterrupted")


def _numbers(run_dir: Path) -> list[tuple[Any, ...]]:
    return [(m["iteration"], m["loss"], m["grad_norm"], m["samples"]) for m in metrics(run_dir)]


def test_a_run_does_not_restart_from_scratch_if_all_checkpoints_are_broken(run_dir: Path) -> None:
    work = run_dir / "checkpoints.partial"
    for _, path in list_checkpoints(work):
        truncated(path)
    with pytest.raises(UserError, match="there is no checkpoint before"):
        run_train(config_of(run_dir, on_broken="previous"))
    assert names(work) == [f"iter_000000{number}.broken-1" for number in (2, 4, 5)]


def test_pruning_keeps_the_configured_checkpoints_and_the_last_one(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    run_train(
        training_config(
            tmp_path, training={"train_iters": 7}, checkpoint={"save_interval": 1, "keep_last": 2, "keep_every": 3}
        )
    )
    assert names(tmp_path / "checkpoints") == [f"iter_000000{number}" for number in (3, 6, 7)]
    outputs = {o["path"] for o in json.loads((tmp_path / "checkpoints" / "manifest.json").read_text())["outputs"]}
    assert "iter_0000007/checkpoint.json" in outputs


def test_asynchronous_saves_write_the_same_bytes(run_dir: Path, tmp_path: Path) -> None:
    """The test compares losses and, by the hashes in ``checkpoint.json``, the content of files."""
    curves, hashes = [], []
    for name, save_async in (("synchronous", False), ("asynchronous", True)):
        write_dataset(tmp_path / name)
        run_train(config_of(tmp_path / name, save_async=save_async))
        curves.append(_numbers(tmp_path / name))
        folder = tmp_path / name / "checkpoints"
        assert names(folder) == ["iter_0000002", "iter_0000004", "iter_0000006"]
        facts = [read_facts(path).files for _, path in list_checkpoints(folder)]
        hashes.append([{k: v.sha256 for k, v in files.items() if k.endswith(".distcp")} for files in facts])
    assert curves[0] == curves[1]
    assert hashes[0] == hashes[1]


def test_a_failing_asynchronous_writer_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(5, "Input/output error")

    write_dataset(tmp_path)
    monkeypatch.setattr(DistcpFile, "append", fail)  # in the child process that writes
    with pytest.raises(CheckpointException, match=r"Input/output error|OSError"):  # by message or by type
        run_train(config_of(tmp_path, save_async=True))
    assert names(tmp_path / "checkpoints.partial") == ["iter_0000002.partial"]


def test_a_run_that_is_stopped_in_its_last_iteration_ends_normally(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path)
    requests = iter([None, None, KeyboardInterrupt])
    monkeypatch.setattr(GracefulShutdown, "requested", lambda self: next(requests))
    run_train(training_config(tmp_path, training={"train_iters": 3}))
    assert names(tmp_path / "checkpoints") == ["iter_0000003"]
