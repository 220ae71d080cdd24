"""JSON lines: what a killed writer leaves is healed, what is broken is named."""

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
    truncate_partial_line,
)
from megatron_ssd.errors import UserError

_rows = st.lists(
    st.dictionaries(st.text(max_size=5), st.text() | st.integers() | st.booleans(), max_size=3), max_size=8
)


@given(rows=_rows)
def test_rows_come_back_as_written(rows: list[dict[str, object]], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    with JsonlWriter(path) as writer:
        for row in rows:
            writer.write(row)
    assert read_jsonl(path) == rows


@given(cut=st.integers(min_value=0, max_value=200))
def test_a_file_cut_anywhere_keeps_its_whole_rows(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    with JsonlWriter(path) as writer:
        for number in range(10):
            writer.write({"number": number, "text": "x\ny"})
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    whole = data.count(b"\n")
    with JsonlWriter(path) as writer:
        writer.write({"number": "new"})
    rows = read_jsonl(path)
    assert [row["number"] for row in rows] == [*range(whole), "new"]


def test_heal_looks_back_beyond_one_block(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": "' + b"x" * 200_000)
    assert truncate_partial_line(path) == 200_000 + len(b'{"b": "')
    assert read_jsonl(path) == [{"a": 1}]


@pytest.mark.parametrize("line", ["{oops", "[1]", '{"a": 1} trailing', "\x00", '"text"', ""])
def test_a_broken_line_is_named_by_file_and_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n{{"b": 2}}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2: "):
        read_jsonl(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.jsonl.*does not exist"):
        read_jsonl(tmp_path / "nothing.jsonl")


def test_lone_surrogates_survive(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with JsonlWriter(path) as writer:
        writer.write({"text": "a\ud800b"})
    assert read_jsonl(path) == [{"text": "a\ud800b"}]


@given(cuts=st.lists(st.integers(min_value=0, max_value=300), max_size=6))
def test_a_file_that_grows_is_read_row_by_row_as_rows_become_whole(
    cuts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    with JsonlWriter(path) as writer:
        for number in range(10):
            writer.write({"number": number, "text": "x\ny"})
    data, place, numbers = path.read_bytes(), FileCursor(), []
    for size in [*sorted(cuts), len(data)]:
        path.write_bytes(data[:size])
        for row, offset in iter_complete_records(path, place):
            assert data[offset:].startswith(b'{"number": %d,' % row["number"])
            numbers.append(row["number"])
    assert numbers == list(range(10))
    assert (place.offset, place.lines) == (len(data), 10)


def test_a_broken_row_of_a_file_that_grows_is_named_by_its_line(tmp_path: Path) -> None:
    path, place = tmp_path / "rows.jsonl", FileCursor()
    path.write_text('{"a": 1}\n')
    assert [row for row, _ in iter_complete_records(path, place)] == [{"a": 1}]
    path.write_text('{"a": 1}\n[2]\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2: .*not an object"):
        list(iter_complete_records(path, place))
