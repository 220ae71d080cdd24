"""Tests for checkpoint folders, without training."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ssd.artifacts.atomic import move_aside
from megatron_ssd.config.training import CheckpointConfig
from megatron_ssd.training.checkpoint_folder import (
    FACTS_FILE,
    BrokenCheckpointError,
    CheckpointFacts,
    check_content,
    checkpoint_path,
    list_checkpoints,
    prune,
    read_facts,
    reading,
    remove_leftovers,
    superfluous,
    write_facts,
)


def make(folder: Path, iteration: int) -> Path:
    """A checkpoint of two small files."""
    path = checkpoint_path(folder, iteration)
    path.mkdir(parents=True)
    for name in ("__0_0.distcp", ".metadata"):
        (path / name).write_bytes(f"{iteration} {name}".encode())
    facts = CheckpointFacts(iteration=iteration, optimizer="non-distributed", layout={}, versions={})
    write_facts(path, facts, hashes={})
    return path


def iterations(folder: Path) -> list[int]:
    return [iteration for iteration, _ in list_checkpoints(folder)]


def test_only_the_final_name_is_a_checkpoint(tmp_path: Path) -> None:
    make(tmp_path, 5)
    for name in ("iter_0000009.partial", "iter_0000008.pruned", "iter_0000007.broken-1", "iter_6", "tensorboard"):
        (tmp_path / name).mkdir()
    assert list_checkpoints(tmp_path)[-1] == (5, tmp_path / "iter_0000005")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "iter_0000005", "iter_0000007.broken-1", "iter_6", "tensorboard",
    ]  # fmt: skip


def test_facts_are_read_as_written(tmp_path: Path) -> None:
    path = make(tmp_path, 5)
    facts = read_facts(path)
    assert facts.iteration == 5
    assert set(facts.files) == {"__0_0.distcp", ".metadata"}
    check_content(path, facts, list(facts.files))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be parsed"),
        ("{}", "cannot be parsed"),
        ("[1]", "cannot be parsed"),
        ('{"iteration": 5, "optimizer": "distributed", "layout": {}, "versions": {}, "files": {}}', "cannot be parsed"),
        ('{"iteration": 5, "optimizer": "distributed", "layout": {}, "versions": {}, "files": {"a": 1}}', "cannot be"),
        (None, "No such file"),
    ],
)
def test_malformed_facts_are_an_error_that_names_the_checkpoint(tmp_path: Path, text: str | None, message: str) -> None:
    path = make(tmp_path, 5)
    (path / FACTS_FILE).unlink()
    if text is not None:
        (path / FACTS_FILE).write_text(text)
    with pytest.raises(BrokenCheckpointError, match=r"iter_0000005: is broken: checkpoint\.json") as caught:
        read_facts(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "on_broken=previous" in str(caught.value)


def test_a_folder_with_the_name_of_another_iteration_is_broken(tmp_path: Path) -> None:
    make(tmp_path, 5).rename(tmp_path / "iter_0000006")
    with pytest.raises(BrokenCheckpointError, match="names iteration 5"):
        read_facts(tmp_path / "iter_0000006")


def test_a_broken_checkpoint_is_kept_under_another_name(tmp_path: Path) -> None:
    assert [move_aside(make(tmp_path, 5), "broken").name for _ in range(2)] == [
        "iter_0000005.broken-1",
        "iter_0000005.broken-2",
    ]
    assert iterations(tmp_path) == []


@given(
    saved=st.sets(st.integers(1, 200), min_size=1).map(sorted),
    keep_last=st.none() | st.integers(1, 5),
    keep_every=st.none() | st.integers(1, 20),
)
def test_which_checkpoints_are_kept(saved: list[int], keep_last: int | None, keep_every: int | None) -> None:
    removed = superfluous(saved, CheckpointConfig(keep_last=keep_last, keep_every=keep_every))
    kept = [number for number in saved if number not in removed]
    assert kept[-1] == saved[-1], "the newest checkpoint was removed"
    if keep_last is None:
        assert removed == []
        return
    assert set(saved[-keep_last:]) <= set(kept)
    marked = [] if keep_every is None else [number for number in saved if number % keep_every == 0]
    assert set(kept) == set(saved[-keep_last:]) | set(marked)


def test_pruning_keeps_checkpoints_that_are_being_read(tmp_path: Path) -> None:
    for iteration in (1, 2, 3, 4):
        make(tmp_path, iteration)
    config = CheckpointConfig(keep_last=1)
    with reading(checkpoint_path(tmp_path, 2)):
        prune(tmp_path, config)
        assert iterations(tmp_path) == [2, 4]
    prune(tmp_path, config)
    assert iterations(tmp_path) == [4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_0000004"]


def test_several_readers_share_a_checkpoint(tmp_path: Path) -> None:
    path = make(tmp_path, 1)
    with reading(path), reading(path), (path / FACTS_FILE).open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
