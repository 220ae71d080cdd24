"""Tests reading and writing files of JSON lines, also files that were cut or are still growing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ssd.artifacts.jsonl import (
    FileCursor,
    JsonlWriter,
    iter_complete_records,
    read_jsonl,
)
from megatron_ssd.artifacts.samples import iter_samples
from megatron_ssd.errors import UserError
from tests.helpers.errors import one_line_error
from tests.helpers.lfs import LFS_POINTER

_records = st.lists(
    st.dictionaries(st.text(max_size=5), st.text() | st.integers() | st.booleans(), max_size=3), max_size=8
)


@given(records=_records)
def test_records_are_read_as_written(
    records: list[dict[str, object]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "records.jsonl"
    with JsonlWriter(path) as writer:
        for record in records:
            writer.write(record)
    assert read_jsonl(path) == records


@given(cut=st.integers(min_value=0, max_value=200))
def test_a_file_cut_anywhere_keeps_its_complete_records(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "records.jsonl"
    with JsonlWriter(path) as writer:
        for number in range(10):
            writer.write({"number": number, "text": "x\ny"})
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    num_complete = data.count(b"\n")
    with JsonlWriter(path) as writer:
        writer.write({"number": "new"})
    records = read_jsonl(path)
    assert [record["number"] for record in records] == [*range(num_complete), "new"]


def test_truncation_looks_back_beyond_one_block(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": "' + b"x" * 200_000)
    JsonlWriter(path).close()
    assert read_jsonl(path) == [{"a": 1}]


@pytest.mark.parametrize("line", ["{oops", "[1]", '{"a": 1} trailing', "\x00", '"text"', ""])
def test_a_broken_line_is_named_by_file_and_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n{{"b": 2}}\n')
    with pytest.raises(UserError, match=r"records\.jsonl:2: "):
        read_jsonl(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.jsonl.*does not exist"):
        read_jsonl(tmp_path / "nothing.jsonl")


def test_lone_surrogates_are_preserved(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with JsonlWriter(path) as writer:
        writer.write({"text": "a\ud800b"})
    assert read_jsonl(path) == [{"text": "a\ud800b"}]


@given(cuts=st.lists(st.integers(min_value=0, max_value=300), max_size=6))
def test_a_growing_file_is_read_record_by_record_as_they_are_completed(
    cuts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "records.jsonl"
    with JsonlWriter(path) as writer:
        for number in range(10):
            writer.write({"number": number, "text": "x\ny"})
    data, cursor, numbers = path.read_bytes(), FileCursor(), []
    for size in [*sorted(cuts), len(data)]:
        path.write_bytes(data[:size])
        for record, offset in iter_complete_records(path, cursor):
            assert data[offset:].startswith(b'{"number": %d,' % record["number"])
            numbers.append(record["number"])
    assert numbers == list(range(10))
    assert (cursor.offset, cursor.lines) == (len(data), 10)


def test_a_broken_record_of_a_growing_file_is_named_by_its_line(tmp_path: Path) -> None:
    path, cursor = tmp_path / "records.jsonl", FileCursor()
    path.write_text('{"a": 1}\n')
    assert [record for record, _ in iter_complete_records(path, cursor)] == [{"a": 1}]
    path.write_text('{"a": 1}\n[2]\n')
    with pytest.raises(UserError, match=r"records\.jsonl:2: .*not an object"):
        list(iter_complete_records(path, cursor))


def test_lines_that_git_lfs_did_not_download_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(LFS_POINTER)
    for read in (read_jsonl, lambda path: list(iter_samples(path))):
        with one_line_error("samples.jsonl: is a Git LFS pointer"):
            read(path)
