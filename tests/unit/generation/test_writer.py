"""A file of samples: in the plan's order, and whole, wherever the writer was killed."""

from __future__ import annotations

import random
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ssd.artifacts.jsonl import read_jsonl
from megatron_ssd.errors import UserError
from megatron_ssd.generation.store import SampleFile
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


def write(path: Path, keys: list[tuple[str, int]]) -> SampleFile:
    file = SampleFile(path, KEYS)
    for key in keys:
        if key not in file.done:
            file.write(sample(key))
    file.close()
    return file


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a run in order, never stopped."""
    path = tmp_path_factory.mktemp("whole") / "one.jsonl"
    write(path, KEYS)
    return path.read_bytes()


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    write(path, KEYS)
    assert [Sample.from_json(row) for row in read_jsonl(path)] == [sample(key) for key in KEYS]


@given(seed=st.integers(min_value=0, max_value=10**6))
@settings(max_examples=20)
def test_order_of_arrival_leaves_no_trace(seed: int, whole: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("shuffled") / "one.jsonl"
    write(path, random.Random(seed).sample(KEYS, len(KEYS)))
    assert path.read_bytes() == whole


@given(seed=st.integers(min_value=0, max_value=10**6), stop=st.integers(0, 25), cut=st.integers(0, 400))
@settings(max_examples=40)
def test_a_writer_cut_anywhere_is_taken_up(
    seed: int, stop: int, cut: int, whole: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / "one.jsonl"
    order = random.Random(seed).sample(KEYS, len(KEYS))
    write(path, order[:stop])
    data = path.read_bytes() if stop else b""
    path.write_bytes(data[: max(0, len(data) - cut)])
    lost = data.count(b"\n") - path.read_bytes().count(b"\n")
    assert len(SampleFile(path, KEYS).done) == stop - lost
    write(path, order)
    assert path.read_bytes() == whole


def test_a_kill_while_a_full_file_is_put_in_order_is_mended(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "one.jsonl"
    with patch.object(Path, "replace", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        write(path, KEYS[::-1])
    assert (tmp_path / ".one.jsonl.tmp").exists()
    write(path, KEYS)
    assert path.read_bytes() == whole


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
