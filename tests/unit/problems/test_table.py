"""Tests reading tables of every file format, and the error messages for broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_ssd.problems.table import open_table
from tests.helpers.errors import one_line_error
from tests.helpers.jsonl import write_jsonl
from tests.helpers.lfs import LFS_POINTER
from tests.helpers.problem_files import choose, config_of, parquet, row

ROWS = [row("one"), row("two")]


def read(path: Path, *columns: str) -> list[dict[str, Any]]:
    return [
        one.values for one in open_table(str(path), key="problems.path", columns_fix="").rows(columns or ("text", "ok"))
    ]


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    listed = tmp_path / "rows.json"
    listed.write_text(json.dumps(ROWS))
    files = [
        write_jsonl(tmp_path / "a.jsonl", ROWS),
        write_jsonl(tmp_path / "a.jsonl.gz", ROWS),
        parquet(tmp_path / "p", ROWS),
        listed,
    ]
    assert [read(file) for file in files] == [[{"text": "one", "ok": True}, {"text": "two", "ok": True}]] * 4


def test_a_folder_is_read_in_the_order_of_its_files(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", [row("second")])
    write_jsonl(tmp_path / "a.jsonl.gz", [row("first")])
    assert [one["text"] for one in read(tmp_path)] == ["first", "second"]


HIDDEN = (".ipynb_checkpoints/a-checkpoint.jsonl", ".git/objects/b.parquet", ".cache/huggingface/c.json", "._a.jsonl",
          "deep/er/.old/d.jsonl", "deep/.#e.jsonl.gz")  # fmt: skip


def test_hidden_files_and_folders_are_no_data(tmp_path: Path) -> None:
    folder = tmp_path / ".data"  # named by the user, so it is read
    for name in HIDDEN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("not rows")
    write_jsonl(folder / "a.jsonl", [row("first")])
    write_jsonl(folder / "deep" / "b.jsonl", [row("second")])
    assert [one["text"] for one in read(folder)] == ["first", "second"]
    assert [one["text"] for one in read(write_jsonl(folder / ".c.jsonl", [row("named")]))] == ["named"]


def test_hidden_files_on_the_hub_are_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi, HfFileSystem

    there = [f"datasets/someone/some-data@abc/{name}" for name in ("a.jsonl", *HIDDEN)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha="abc"))
    monkeypatch.setattr(HfFileSystem, "glob", lambda *_, **__: there)
    assert open_table("someone/some-data", key="problems.path", columns_fix="").files == (there[0],)


def test_a_line_may_have_ten_megabytes(tmp_path: Path) -> None:
    assert len(read(write_jsonl(tmp_path / "a.jsonl", [row("x" * 10_000_000)]))[0]["text"]) == 10_000_000


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    def refuse(self: HfApi, *arguments: Any, **more: Any) -> None:
        raise ConnectionError("no route to host\nand a second line")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HfApi, "dataset_info", refuse)
    with one_line_error(r"Hub did not serve it .*no route to host"):
        choose(config_of(tmp_path / "run", Path("someone/some-data")))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.json"])
def test_a_file_that_git_lfs_did_not_download_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(LFS_POINTER)
    for path in (tmp_path, tmp_path / name):
        with one_line_error(f"{name}: is a Git LFS pointer"):
            read(path)
