"""Files of every kind are read alike, and a broken one is one line that names the place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.errors import UserError
from megatron_ssd.problems.table import open_table
from tests.unit.problems.problem_files import COLUMNS, choose, config_of, jsonl, parquet, row, rstar_row

ROWS = [row("one"), row("two")]


def read(path: Path, *columns: str) -> list[dict[str, Any]]:
    return [
        one.values for one in open_table(str(path), key="problems.path", columns_fix="").rows(columns or ("text", "ok"))
    ]


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    listed = tmp_path / "rows.json"
    listed.write_text(json.dumps(ROWS))
    files = [
        jsonl(tmp_path / "a.jsonl", ROWS),
        jsonl(tmp_path / "a.jsonl.gz", ROWS),
        parquet(tmp_path / "p", ROWS),
        listed,
    ]
    assert [read(file) for file in files] == [[{"text": "one", "ok": True}, {"text": "two", "ok": True}]] * 4


def test_a_folder_is_read_in_the_order_of_its_files(tmp_path: Path) -> None:
    jsonl(tmp_path / "b.jsonl", [row("second")])
    jsonl(tmp_path / "a.jsonl.gz", [row("first")])
    assert [one["text"] for one in read(tmp_path)] == ["first", "second"]


def test_a_line_of_ten_megabytes_is_a_row_like_any_other(tmp_path: Path) -> None:
    assert len(read(jsonl(tmp_path / "a.jsonl", [row("x" * 10_000_000)]))[0]["text"]) == 10_000_000


def _lines(*lines: str | bytes) -> bytes:
    return b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)


GOOD = json.dumps(row("a problem"))
# name -> (file name, content, what the one line says)
BROKEN: dict[str, tuple[str, bytes, str]] = {
    "no file content": ("a.jsonl", b"", "none of its 0 rows is left"),
    "blank lines only": ("a.jsonl", b"\n \n", "none of its 0 rows is left"),
    "cut line": ("a.jsonl", _lines(GOOD)[:-20], r"a\.jsonl:1: is no JSON"),
    "cut second line": ("a.jsonl", _lines(GOOD, GOOD)[:-20], r"a\.jsonl:2: is no JSON"),
    "text": ("a.jsonl", b"hello\n", r"a\.jsonl:1: is no JSON"),
    "list": ("a.jsonl", b"[1]\n", r"a\.jsonl:1: is a list"),
    "number": ("a.jsonl", b"7\n", r"a\.jsonl:1: is a int"),
    "null": ("a.jsonl", b"null\n", r"a\.jsonl:1: is a NoneType"),
    "two objects on a line": ("a.jsonl", _lines(GOOD + GOOD), r"a\.jsonl:1: is no JSON"),
    "python literal": ("a.jsonl", b"{'text': 'x'}\n", r"a\.jsonl:1: is no JSON"),
    "deep nesting": ("a.jsonl", b"[" * 100_000 + b"\n", r"a\.jsonl:1: is no JSON"),
    "latin-1": ("a.jsonl", _lines(GOOD, '{"text": "é"}'.encode("latin-1")), r"a\.jsonl:2: is no JSON"),
    "NUL bytes": ("a.jsonl", b"\0" * 64 + b"\n", r"a\.jsonl:1: is no JSON"),
    "UTF-16": ("a.jsonl", "\ufeffx".encode("utf-16"), r"a\.jsonl: is UTF-16 text by its first bytes"),
    "binary": ("a.jsonl", bytes(range(256)), r"a\.jsonl:1: is no JSON"),
    "missing column": ("a.jsonl", b'{"question": "x"}\n', "has no column name, text, starter"),
    "column gone in a later row": ("a.jsonl", _lines(GOOD, '{"text": "x"}'), r"a\.jsonl:2 .*has no column name"),
    "text is a number": ("a.jsonl", _lines(json.dumps(row(7))), r"text = '7': must be text and is a int"),
    "text is a list": ("a.jsonl", _lines(json.dumps(row(["x"]))), "must be text and is a list"),
    "starter is an object": ("a.jsonl", _lines(json.dumps(row("x", starter={}))), "must be text and is a dict"),
    "passed is text": ("a.jsonl", _lines(json.dumps(row("x", ok="yes"))), "ok = 'yes': must be true or false"),
    "passed is a number": ("a.jsonl", _lines(json.dumps(row("x", ok=1))), "must be true or false"),
    "truncated gzip": ("a.jsonl.gz", gzip.compress(_lines(*[GOOD] * 99))[:-30], r"a\.jsonl\.gz:\d+: is no whole gzip"),
    "gzip that is none": ("a.jsonl.gz", b"plain text\n", r"a\.jsonl\.gz:1: is no whole gzip"),
    "empty gzip member": ("a.jsonl.gz", gzip.compress(b"")[:-4], r"a\.jsonl\.gz:1: is no whole gzip"),
    "gzip with a flipped byte": ("a.jsonl.gz", b"\x1f\x8b\x08\x00" + b"\xff" * 40, r"a\.jsonl\.gz:1: is no whole gzip"),
    "json object": ("a.json", b"{}", r"a\.json: holds no list of rows"),
    "json cut": ("a.json", json.dumps(ROWS).encode()[:-9], r"a\.json: is no JSON"),
    "json of numbers": ("a.json", b"[1, 2]", r"a\.json:1: is a int"),
    "parquet that is none": ("a.parquet", b"PAR1 no", r"a\.parquet: is no whole parquet file"),
    "empty parquet": ("a.parquet", b"", r"a\.parquet: is no whole parquet file"),
    "another ending": ("a.csv", b"text\nx\n", r"holds no \*\.parquet or \*\.jsonl or"),
    "only blank texts": ("a.jsonl", _lines(json.dumps(row(" ")), json.dumps(row(None))), r"'no_text': 2"),
    "only surrogates": ("a.jsonl", b'{"text": "\\ud800", "name": "x", "starter": "", "ok": true}\n', r"'bad_text': 1"),
    "only NUL in text": ("a.jsonl", _lines(json.dumps(row("a\0b"))), r"'bad_text': 1"),
    "surrogate in starter code": ("a.jsonl", b'{"text": "x", "name": "x", "starter": "\\udfff", "ok": true}\n',
                                  r"'bad_text': 1"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_one_line(tmp_path: Path, kind: str) -> None:
    name, content, message = BROKEN[kind]
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        choose(config_of(tmp_path / "run", folder, name="rows", columns=COLUMNS, only_passed=kind.startswith("passed")))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "problems").exists()


@pytest.mark.parametrize("cut", [10, 200, 1000])
def test_a_cut_parquet_file_is_named(tmp_path: Path, cut: int) -> None:
    folder = parquet(tmp_path / "rows", [rstar_row(number, f"problem {number}") for number in range(200)])
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(UserError, match="is no whole parquet file"):
        choose(config_of(tmp_path / "run", folder))


def test_a_parquet_file_of_other_columns_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column question_id, starter_code"):
        choose(config_of(tmp_path / "run", parquet(tmp_path / "rows", [{"question": "q"}])))


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: does not exist"):
        choose(config_of(tmp_path / "run", tmp_path / "nowhere"))


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    def refuse(self: HfApi, *arguments: Any, **more: Any) -> None:
        raise ConnectionError("no route to host\nand a second line")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HfApi, "dataset_info", refuse)
    with pytest.raises(UserError, match=r"Hub did not serve it .*no route to host") as caught:
        choose(config_of(tmp_path / "run", Path("someone/some-data")))
    assert "\n" not in str(caught.value)
