"""Where samples stand: rows are found once, wherever they are, and what does not belong is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ssd.errors import UserError
from megatron_ssd.generation.merge import merge
from megatron_ssd.generation.sample_index import SampleIndex
from tests.unit.generation.test_writer import KEYS, sample


def index_of(folder: Path) -> SampleIndex:
    index = SampleIndex(folder, KEYS, rows_per_shard=10)
    index.update()
    return index


def write(path: Path, keys: list[tuple[str, int]]) -> None:
    """Append the rows of ``keys``."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(sample(key).to_json(), ensure_ascii=False) + "\n" for key in keys)


def test_rows_of_all_worlds_count_and_files_are_read_on_from_where_they_ended(tmp_path: Path) -> None:
    first, second = tmp_path / "worker-0-of-2.jsonl", tmp_path / "worker-3-of-7.jsonl"
    write(first, KEYS[5:10])
    write(second, KEYS[20:])
    index = index_of(tmp_path)
    assert index.num_missing == 15
    assert KEYS[5] in index
    assert KEYS[4] not in index
    first.write_bytes(first.read_bytes() + b'{"torn')
    index.update()
    assert index.num_missing == 15
    first.write_bytes(first.read_bytes().removesuffix(b'{"torn'))
    write(first, KEYS[:5])
    index.update()
    assert index.num_missing == 10
    assert index.counts == index_of(tmp_path).counts


def test_merged_rows_are_in_the_plans_order_and_their_sources_go(tmp_path: Path) -> None:
    write(tmp_path / "worker-0-of-2.jsonl", KEYS[::-2])
    write(tmp_path / "worker-1-of-2.jsonl", KEYS[1::2])
    (tmp_path / ".worker-5-of-9.spans.json.tmp").write_text("{")
    index = index_of(tmp_path)
    merge(index)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"shard-0000{number}.jsonl" for number in range(3)]
    lines = [line for path in sorted(tmp_path.iterdir()) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [json.loads(line) for line in lines] == [sample(key).to_json() for key in KEYS]
    assert index_of(tmp_path).counts == index.counts == {"samples": 25, "response_tokens": 300, "stop": 16, "length": 9}


def test_a_finished_shard_stands_for_the_rows_it_was_made_of(tmp_path: Path) -> None:
    write(tmp_path / "worker-0-of-1.jsonl", KEYS)
    index = index_of(tmp_path)
    write(tmp_path / "shard-00001.jsonl", KEYS[10:20])  # of a merge that was killed
    before = (tmp_path / "shard-00001.jsonl").stat().st_ino
    index.update()
    assert index.num_missing == 0
    assert set(merge(index)) == {"shard-00000.jsonl", "shard-00002.jsonl"}
    assert (tmp_path / "shard-00001.jsonl").stat().st_ino == before


@pytest.mark.parametrize("keys", [KEYS[:9], KEYS[:11], [*KEYS[1:10], KEYS[0]]])
def test_a_shard_of_anything_but_its_rows_is_refused(tmp_path: Path, keys: list[tuple[str, int]]) -> None:
    write(tmp_path / "shard-00000.jsonl", keys)
    with pytest.raises(UserError, match="is no finished shard of this plan; move it away"):
        index_of(tmp_path)


def test_foreign_and_repeated_rows_are_named_by_file_and_line(tmp_path: Path) -> None:
    write(tmp_path / "worker-0-of-2.jsonl", KEYS[:3])
    write(tmp_path / "worker-1-of-3.jsonl", [KEYS[8], KEYS[2]])
    with pytest.raises(UserError, match=r"worker-1-of-3\.jsonl:2 with sample \('p1', 0\): .* comes twice"):
        index_of(tmp_path)
    with pytest.raises(UserError, match=r"worker-0-of-2\.jsonl:1 with sample \('p0', 0\): .*not planned"):
        SampleIndex(tmp_path, KEYS[1:], rows_per_shard=10).update()


def test_a_broken_row_is_named_by_file_and_line(tmp_path: Path) -> None:
    write(tmp_path / "worker-0-of-1.jsonl", KEYS[:2])
    with (tmp_path / "worker-0-of-1.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(UserError, match=r"worker-0-of-1\.jsonl:3"):
        index_of(tmp_path)
