"""Tests for writing checkpoints: what readers find in them, and what a failed writer leaves."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from torch.distributed import checkpoint
from torch.distributed.checkpoint import CheckpointException

from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.training import CheckpointConfig
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import process_groups
from megatron_ssd.runtime.versions import load_options
from megatron_ssd.training.checkpoint_folder import CheckpointFacts, check_content, read_facts
from megatron_ssd.training.checkpoint_writer import CheckpointWriter
from megatron_ssd.training.distcp_file import DistcpFile
from tests.helpers.devices import without_gpu
from tests.helpers.training_run import CPU

pytestmark = without_gpu


@pytest.fixture(scope="module", autouse=True)
def groups() -> Iterator[None]:
    with process_groups(ParallelConfig(), device=prepare_device(CPU)):
        yield


def values() -> dict[str, torch.Tensor]:
    """Tensors by key, two of them in the same storage, one above the size that is written at a time."""
    shared = torch.arange(24, dtype=torch.float32)
    return {
        "decoder.first": shared[:8].view(2, 4),
        "decoder.second": shared[8:],
        "decoder.half": torch.linspace(-1, 1, 33, dtype=torch.bfloat16),
        "ema.first": torch.full((2, 4), 3.0),
        "optimizer.exp_avg": torch.arange(3_000_000, dtype=torch.float32),
        "optimizer.exp_avg_sq": torch.zeros(5, 3).t(),
    }


def sharded(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {key: ShardedTensor.from_rank_offsets(key, tensor) for key, tensor in tensors.items()}


def save(folder: Path, tensors: dict[str, torch.Tensor], *, save_async: bool) -> CheckpointWriter:
    writer = CheckpointWriter(folder, CheckpointConfig(save_async=save_async))
    start(writer, tensors, iteration=7)
    return writer


def start(writer: CheckpointWriter, tensors: dict[str, torch.Tensor], *, iteration: int) -> None:
    facts = CheckpointFacts(iteration=iteration, optimizer="none", layout={}, versions={})
    state = {**sharded(tensors), "object": ShardedObject("object", b"bytes", (1,), (0,), replica_id=0)}
    writer.save(facts, state, may_prune=False)


def read(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What torch's own reader finds by the keys of ``tensors``."""
    found = {key: torch.full_like(tensor, 9.0) for key, tensor in tensors.items()}
    checkpoint.load(found, storage_reader=checkpoint.FileSystemReader(path), no_dist=True)
    return found


@pytest.mark.parametrize(("save_async", "num_written"), [(False, 0), (True, 0), (True, 1), (True, 3), (True, 6)])
def test_every_reader_finds_the_state_as_it_was_at_the_save(
    tmp_path: Path, save_async: bool, num_written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An asynchronous writer is told to detach from the state when ``num_written`` values are written."""
    state, expected = values(), values()
    append, reached, going_on = DistcpFile.append, threading.Event(), threading.Event()
    calls = itertools.count()

    def stop_once(*args: Any, **kwargs: Any) -> Any:
        if save_async and next(calls) == num_written:
            reached.set()
            going_on.wait()
        return append(*args, **kwargs)

    monkeypatch.setattr(DistcpFile, "append", stop_once)
    writer = save(tmp_path, state, save_async=save_async)
    if save_async:
        reached.wait()
        threading.Timer(0.05, going_on.set).start()
    writer.detach()
    for tensor in state.values():
        tensor.zero_()
    writer.finish()
    path = tmp_path / "iter_0000007"
    facts = read_facts(path)
    check_content(path, facts, sorted(facts.files))

    by_torch = read(path, expected)
    wanted = sharded({key: torch.full_like(tensor, 9.0) for key, tensor in expected.items()})
    wanted["object"] = ShardedObject("object", None, (1,), (0,), replica_id=0)
    by_megatron = dist_checkpointing.load(wanted, str(path), **load_options(path))
    assert by_megatron["object"] == b"bytes"
    for key, tensor in expected.items():
        assert torch.equal(by_torch[key], tensor), key
        assert torch.equal(by_megatron[key], tensor), key


def test_later_asynchronous_saves_use_the_same_plan_and_leave_earlier_checkpoints_alone(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, CheckpointConfig(save_async=True))
    states = {number: {key: tensor + number for key, tensor in values().items()} for number in range(1, 5)}
    for iteration, state in states.items():
        start(writer, state, iteration=iteration)
    writer.finish()
    for iteration, state in states.items():
        found = read(tmp_path / f"iter_{iteration:07d}", state)
        assert all(torch.equal(found[key], tensor) for key, tensor in state.items())


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, save_async in (("first", False), ("second", True)):
        save(tmp_path / name, values(), save_async=save_async).finish()
    first, second = (read_facts(tmp_path / name / "iter_0000007").files for name in ("first", "second"))
    assert {name: first[name] for name in first if name.endswith(".distcp")}
    for name in first:
        assert name == ".metadata" or first[name] == second[name], name  # it has a random id


def fail_with(number: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("save_async", "append", "error", "message"),
    [
        (False, fail_with(errno.EIO), CheckpointException, "Input/output error"),
        (False, fail_with(errno.ENOSPC), OSError, "No space left"),
        (True, fail_with(errno.EIO), CheckpointException, "Input/output error"),
        (True, fail_with(errno.ENOSPC), OSError, "No space left"),
    ],
)
def test_a_failed_writer_is_an_error_and_leaves_no_checkpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    save_async: bool,
    append: Callable[..., Any],
    error: type[BaseException],
    message: str,
) -> None:
    monkeypatch.setattr(DistcpFile, "append", append)
    with pytest.raises(error, match=message):
        save(tmp_path, values(), save_async=save_async).finish()
    assert [path.name for path in tmp_path.iterdir()] == ["iter_0000007.partial"]
    monkeypatch.undo()
    save(tmp_path, values(), save_async=save_async).finish()
    assert [path.name for path in tmp_path.iterdir()] == ["iter_0000007"]
