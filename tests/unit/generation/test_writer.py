"""Shards: in the plan's order, and whole, wherever the writer was killed."""

from __future__ import annotations

import random
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ssd.artifacts.jsonl import read_jsonl
from megatron_ssd.errors import UserError
from megatron_ssd.generation.writer import SampleFile, SampleShards
from megatron_ssd.schema import Sample

KEYS = [(f"p{number // 2}", number % 2) for number in range(25)]


def sample(key: tuple[str, int]) -> Sample:
    number = KEYS.index(key)
    return Sample(
        problem_id=key[0],
        sample_index=key[1],
        messages=[],
        prompt_token_ids=[number],
        response="é\n" * number,
        response_token_ids=list(range(number)),
        finish_reason="stop" if number % 3 else "length",
        seed=number,
        sampling_hash="h",
        model_revision="m",
    )


def write(folder: Path, keys: list[tuple[str, int]]) -> SampleShards:
    with SampleShards(folder, KEYS, rows_per_shard=10) as shards:
        for key in keys:
            if key not in shards.done:
                shards.write(sample(key))
    return shards


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run in order, never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    write(folder, KEYS)
    return content(folder)


def test_shards_hold_slices_of_the_plan(whole: dict[str, bytes]) -> None:
    assert list(whole) == ["shard-00000.jsonl", "shard-00001.jsonl", "shard-00002.jsonl"]
    assert [data.count(b"\n") for data in whole.values()] == [10, 10, 5]


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    write(tmp_path, KEYS)
    rows = [Sample.from_json(row) for path in sorted(tmp_path.iterdir()) for row in read_jsonl(path)]
    assert rows == [sample(key) for key in KEYS]


@given(seed=st.integers(min_value=0, max_value=10**6))
@settings(max_examples=20, deadline=None)
def test_order_of_arrival_leaves_no_trace(
    seed: int, whole: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shuffled")
    write(folder, random.Random(seed).sample(KEYS, len(KEYS)))
    assert content(folder) == whole


@given(seed=st.integers(min_value=0, max_value=10**6), stop=st.integers(0, 25), cut=st.integers(0, 400))
@settings(max_examples=40, deadline=None)
def test_a_writer_cut_anywhere_is_taken_up(
    seed: int, stop: int, cut: int, whole: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    order = random.Random(seed).sample(KEYS, len(KEYS))
    write(folder, order[:stop])
    files = sorted(folder.iterdir())
    lost = 0
    if files:
        last = files[-1]
        data = last.read_bytes()
        last.write_bytes(data[: max(0, len(data) - cut)])
        lost = data.count(b"\n") - last.read_bytes().count(b"\n")
    with SampleShards(folder, KEYS, rows_per_shard=10) as shards:
        assert len(shards.done) == stop - lost
    shards = write(folder, order)
    assert content(folder) == whole
    assert shards.counts == {"samples": 25, "response_tokens": 300, "stop": 16, "length": 9}


def test_a_kill_while_a_full_file_is_put_in_order_is_mended(tmp_path: Path, whole: dict[str, bytes]) -> None:
    with patch.object(Path, "replace", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        write(tmp_path, KEYS[:10][::-1])
    assert (tmp_path / ".shard-00000.jsonl.tmp").exists()
    write(tmp_path, KEYS)
    assert content(tmp_path) == whole


def test_foreign_and_repeated_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    with patch.object(SampleFile, "_put_in_order"):
        SampleFile(path, KEYS[:2]).write(sample(KEYS[0]))
    with pytest.raises(UserError, match=r"one.jsonl with sample \('p0', 0\)"):
        SampleFile(path, KEYS[1:])
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(UserError, match="comes twice"):
        SampleFile(path, KEYS)


def test_broken_row_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text("{\n")
    with pytest.raises(UserError, match=r"one.jsonl:1"):
        SampleFile(path, KEYS)


def test_rows_of_another_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"problem_id": "p0", "sample_index": 0}\n')
    with pytest.raises(UserError, match="unknown or missing"):
        SampleFile(path, KEYS)
