"""Tests unusual and corrupt files of training problems and evaluation sets.

Each case ends in one line that names the value, the rule and the fix, or in rows that are left out and counted.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.problems.decontamination import Decontaminator, evaluation_set_hashes
from tests.helpers.errors import one_line_error
from tests.helpers.jsonl import write_jsonl
from tests.helpers.lcb_rows import lcb_section
from tests.helpers.problem_files import COLUMNS, choose, config_of, parquet, row, rstar_row

GOOD = json.dumps(row("Print the sum of two numbers.", name="good"))


def _lines(*lines: str | bytes) -> bytes:
    return b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)


def _parquet(*rows: dict[str, Any], schema: pyarrow.Schema | None = None) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema), buffer, compression="none")
    return buffer.getvalue()


def _with(**changes: Any) -> bytes:
    """A good line, and one with ``changes``."""
    return _lines(GOOD, json.dumps(row("Another problem.", name="other") | changes))


PARQUET = _parquet(*(row(f"Print the number {number}.", name=f"p{number}") for number in range(200)))
NESTED = "[" * 100_000

# Files that every reader refuses: name -> (file name, content, message).
UNREADABLE: dict[str, tuple[str, bytes, str]] = {
    "no content": ("a.jsonl", b"", r"a\.jsonl: is empty; download it again"),
    "gzip without content": ("a.jsonl.gz", b"", r"a\.jsonl\.gz: is empty"),
    "cut line": ("a.jsonl", _lines(GOOD)[:-20], r"a\.jsonl:1: is not JSON"),
    "cut second line": ("a.jsonl", _lines(GOOD, GOOD)[:-20], r"a\.jsonl:2: is not JSON"),
    "text": ("a.jsonl", b"hello\n", r"a\.jsonl:1: is not JSON"),
    "text after good lines": ("a.jsonl", _lines(GOOD, "", "hello"), r"a\.jsonl:3: is not JSON"),
    "list": ("a.jsonl", b"[1]\n", r"a\.jsonl:1: is a list.*ends with \.json"),
    "number": ("a.jsonl", b"7\n", r"a\.jsonl:1: is a int"),
    "text in quotes": ("a.jsonl", _lines(GOOD, '"hello"'), r"a\.jsonl:2: is a str"),
    "true": ("a.jsonl", b"true\n", r"a\.jsonl:1: is a bool"),
    "NaN": ("a.jsonl", b"NaN\n", r"a\.jsonl:1: is a float"),
    "null": ("a.jsonl", b"null\n", r"a\.jsonl:1: is a NoneType"),
    "two objects on a line": ("a.jsonl", _lines(GOOD + GOOD), r"a\.jsonl:1: is not JSON"),
    "an object over two lines": ("a.jsonl", _lines(GOOD[:20], GOOD[20:]), r"a\.jsonl:1: is not JSON"),
    "python literal": ("a.jsonl", b"{'text': 'x'}\n", r"a\.jsonl:1: is not JSON"),
    "trailing comma": ("a.jsonl", _lines(GOOD[:-1] + ",}"), r"a\.jsonl:1: is not JSON"),
    "deep nesting": ("a.jsonl", _lines(GOOD, NESTED), r"a\.jsonl:2: is not JSON"),
    "deep nesting in an unread column": ("a.jsonl", _lines(GOOD[:-1] + ', "x": ' + NESTED), r"a\.jsonl:1: is not JSON"),
    "a number of 5,000 digits": ("a.jsonl", _lines('{"name": ' + "1" * 5000 + "}"), r"a\.jsonl:1: is not JSON"),
    "control character": ("a.jsonl", _lines('{"text": "a\x01b"}'), r"a\.jsonl:1: is not JSON"),
    "latin-1": ("a.jsonl", _lines(GOOD, '{"text": "é"}'.encode("latin-1")), r"a\.jsonl:2: is not JSON"),
    "NUL bytes": ("a.jsonl", b"\0" * 64 + b"\n", r"a\.jsonl:1: is not JSON"),
    "NUL bytes at the end": ("a.jsonl", _lines(GOOD, b"\0" * 64), r"a\.jsonl:2: is not JSON"),
    "UTF-16": ("a.jsonl", (GOOD + "\n").encode("utf-16"), r"a\.jsonl: is UTF-16 text.*save it as UTF-8"),
    "UTF-16 big-endian": ("a.jsonl", b"\xfe\xff" + GOOD.encode("utf-16-be"), r"a\.jsonl: is UTF-16 text"),
    "UTF-16 without a mark": ("a.jsonl", (GOOD + "\n").encode("utf-16-le"), r"a\.jsonl:1: is not JSON"),
    "UTF-16 in a list": ("a.json", f"[{GOOD}]".encode("utf-16"), r"a\.json: is UTF-16 text"),
    "binary": ("a.jsonl", bytes(range(256)), r"a\.jsonl:1: is not JSON"),
    "gzip under another name": ("a.jsonl", gzip.compress(_lines(GOOD)), r"is a gzip file.*ends with \.jsonl\.gz"),
    "parquet under another name": ("a.jsonl", PARQUET, r"is a parquet file.*ends with \.parquet"),
    "lines under the name of parquet": ("a.parquet", _lines(GOOD), r"a\.parquet: is not a complete parquet"),
    "truncated gzip": ("a.jsonl.gz", gzip.compress(_lines(*[GOOD] * 99))[:-30], r"a\.jsonl\.gz:\d+: is not a complete"),
    "text under the name of gzip": ("a.jsonl.gz", b"plain text\n", r"a\.jsonl\.gz:1: is not a complete gzip"),
    "gzip without its end": ("a.jsonl.gz", gzip.compress(b"")[:-4], r"a\.jsonl\.gz:1: is not a complete gzip"),
    "gzip with a wrong sum": ("a.jsonl.gz", gzip.compress(_lines(GOOD))[:-8] + b"\0" * 8, "not a complete gzip"),
    "gzip with junk at its end": ("a.jsonl.gz", gzip.compress(_lines(GOOD)) + b"junk", r"not a complete gzip"),
    "gzip of nonsense": ("a.jsonl.gz", b"\x1f\x8b\x08\x00" + b"\xff" * 40, r"a\.jsonl\.gz:1: is not a complete gzip"),
    "gzip of a cut line": ("a.jsonl.gz", gzip.compress(_lines(GOOD, GOOD)[:-9]), r"a\.jsonl\.gz:2: is not JSON"),
    "json object": ("a.json", GOOD.encode(), r"a\.json: does not contain a list of rows"),
    "json cut": ("a.json", f"[{GOOD}, {GOOD}]".encode()[:-9], r"a\.json: is not JSON"),
    "json of lines": ("a.json", _lines(GOOD, GOOD), r"a\.json: is not JSON.*ends with \.jsonl"),
    "json of numbers": ("a.json", b"[1, 2]", r"a\.json:1: is a int"),
    "json with a null row": ("a.json", f"[{GOOD}, null]".encode(), r"a\.json:2: is a NoneType"),
    "json without content": ("a.json", b"", r"a\.json: is empty"),
    "json of white space": ("a.json", b" \n", r"a\.json: is not JSON"),
    "json of deep nesting": ("a.json", NESTED.encode(), r"a\.json: is not JSON"),
    "text under the name of parquet": ("a.parquet", b"PAR1 no", r"a\.parquet: is not a complete parquet"),
    "parquet without content": ("a.parquet", b"", r"a\.parquet: is empty"),
    "parquet cut at its last byte": ("a.parquet", PARQUET[:-1], "not a complete parquet"),
    "parquet cut in its footer": ("a.parquet", PARQUET[:-200], "not a complete parquet"),
    "parquet cut in half": ("a.parquet", PARQUET[: len(PARQUET) // 2], "not a complete parquet"),
    "parquet with its pages wiped": ("a.parquet", PARQUET[:4] + b"\xff" * 400 + PARQUET[404:], "not a complete"),
    "parquet of text that is not UTF-8": ("a.parquet", PARQUET.replace(b"number 7.", b"number \xff."),
                                         "not a complete parquet"),
    "another ending": ("a.csv", b"text\nx\n", r"has no \.parquet or \.jsonl or"),
    "an ending in capitals": ("a.JSONL", _lines(GOOD), r"has no \.parquet or \.jsonl or"),
    "wrong columns": ("a.jsonl", b'{"question": "x"}\n', r"a\.jsonl:1 with columns question: has no column"),
    "an object without columns": ("a.jsonl", b"{}\n", r"a\.jsonl:1 with columns none: has no column"),
    "column gone in a later row": ("a.jsonl", _lines(GOOD, '{"x": "y"}'), r"a\.jsonl:2 .*has no column"),
    "column in capitals": ("a.jsonl", _lines(GOOD.replace("text", "Text")), r"has no column text"),
    "wrong columns of a parquet file": ("a.parquet", _parquet({"q": "x"}), r"a\.parquet with columns q: has no column"),
    "text is a number": ("a.jsonl", _with(text=7), r"a\.jsonl:2.*'7'.*must be text and is a int"),
    "text is NaN": ("a.jsonl", _with(text=float("nan")), r"a\.jsonl:2.*must be text and is a float"),
    "text is a truth value": ("a.jsonl", _with(text=True), r"a\.jsonl:2.*must be text and is a bool"),
    "text is a list": ("a.jsonl", _with(text=["x"]), r"a\.jsonl:2.*must be text and is a list"),
    "text is an object": ("a.jsonl", _with(text={"x": "y"}), r"a\.jsonl:2.*must be text and is a dict"),
    "text of a parquet file is bytes": ("a.parquet", _parquet(row(b"x")), r"a\.parquet:1.*must be text and is a b"),
    "text of a parquet file is nested": ("a.parquet", _parquet(row([{"a": "x"}])), "must be text and is a list"),
    "text of a parquet file is a date": ("a.parquet", _parquet(row(datetime(2025, 1, 1))), "must be text and is a d"),
}  # fmt: skip

# Files that are refused only as training problems.
UNUSABLE: dict[str, tuple[str, bytes, str]] = {
    "blank lines only": ("a.jsonl", b"\n \n\t\r\n", "none of its 0 rows is left"),
    "empty gzip": ("a.jsonl.gz", gzip.compress(b""), "none of its 0 rows is left"),
    "empty list": ("a.json", b"[]", "none of its 0 rows is left"),
    "parquet without rows": ("a.parquet", _parquet(schema=pyarrow.schema(dict.fromkeys(COLUMNS.values(), "string"))),
                             "none of its 0 rows is left"),
    "blank texts only": ("a.jsonl", _lines(*(json.dumps(row(text)) for text in (" ", "", None))),
                         "dropped 3 for no_text"),
    "unicode spaces only": ("a.jsonl", _lines(json.dumps(row("\u00a0\u2003\u3000\u200b\ufeff"))),
                           "dropped 1 for no_text"),
    "punctuation only": ("a.jsonl", _lines(json.dumps(row("??? ___ ---"))), "dropped 1 for no_text"),
    "surrogates only": ("a.jsonl", _lines(r'{"text": "\ud800", "name": "x", "starter": "", "ok": true}'),
                        "dropped 1 for bad_text"),
    "missing starter code": ("a.jsonl", b'{"text": "x", "name": "y", "ok": true}\n', "has no column starter"),
    "starter code is an object": ("a.jsonl", _with(starter={}), r"a\.jsonl:2: starter.*must be text and is a dict"),
    "starter code is a number": ("a.jsonl", _with(starter=0), r"a\.jsonl:2: starter.*must be text and is a int"),
    "passed is text": ("a.jsonl", _with(ok="yes"), r"a\.jsonl:2: ok = 'yes': must be true or false"),
    "passed is a number": ("a.jsonl", _with(ok=1), r"a\.jsonl:2: ok = '1': must be true or false"),
    "id is null": ("a.jsonl", _with(name=None), r"a\.jsonl:2: name = 'None': an id must be text or a whole number"),
    "id is a fraction": ("a.jsonl", _with(name=1.5), "an id must be text or a whole number"),
    "id is NaN": ("a.jsonl", _with(name=float("nan")), "name = 'nan': an id must be text or a whole number"),
    "id is infinite": ("a.jsonl", _with(name=float("inf")), "name = 'inf': an id must be text or a whole number"),
    "id is a list": ("a.jsonl", _with(name=["a"]), "an id must be text or a whole number"),
    "id is a truth value": ("a.jsonl", _with(name=True), "an id must be text or a whole number"),
    "id is empty text": ("a.jsonl", _with(name=""), "an id must be text or a whole number"),
}  # fmt: skip

# Files that are read: name -> (file name, content, ids of the kept rows, counts of the reasons for the others).
COUNTED: dict[str, tuple[str, bytes, list[str], dict[str, int]]] = {
    "mark of UTF-8": ("a.jsonl", b"\xef\xbb\xbf" + _lines(GOOD), ["good"], {}),
    "Windows line ends": ("a.jsonl", GOOD.encode() + b"\r\n\r\n" + GOOD.encode() + b"\r\n", ["good"], {"duplicate": 1}),
    "no last line end": ("a.jsonl", GOOD.encode(), ["good"], {}),
    "blank lines between": ("a.jsonl", _lines("", GOOD, "  ", ""), ["good"], {}),
    "a line of ten megabytes": ("a.jsonl", _with(text="x" * 10_000_000), ["good", "other"], {}),
    "NUL in a text": ("a.jsonl", _with(text="a\0b"), ["good"], {"bad_text": 1}),
    "half a surrogate pair": ("a.jsonl", _with(text="a\ud800b"), ["good"], {"bad_text": 1}),
    "surrogate in the starter code": ("a.jsonl", _with(starter="\udfff"), ["good"], {"bad_text": 1}),
    "surrogate in the id": ("a.jsonl", _with(name="\udfff"), ["good"], {"bad_text": 1}),
    "surrogate as bytes": ("a.jsonl", _lines(GOOD, GOOD.replace("Print", "P!").encode().replace(b"!", b"\xed\xa0\x80")),
                           ["good"], {"bad_text": 1}),
    "null text": ("a.jsonl", _with(text=None), ["good"], {"no_text": 1}),
    "unicode spaces": ("a.jsonl", _with(text="Print\u00a0the\u2003sum\u3000of two\u2028numbers."), ["good"],
                       {"duplicate": 1}),
    "numbers as ids": ("a.jsonl", _with(name=-7), ["good", "-7"], {}),
    "huge numbers as ids": ("a.jsonl", _with(name=10**30), ["good", str(10**30)], {}),
    "repeated ids": ("a.jsonl", _with(name="good"), ["good", "good#2"], {}),
    "a key that comes twice": ("a.jsonl", _lines(GOOD[:-1] + ', "name": "last"}'), ["last"], {}),
    "NaN in an unread column": ("a.jsonl", _with(score=float("nan")), ["good", "other"], {}),
    "two gzip members": ("a.jsonl.gz", gzip.compress(_lines(GOOD)) * 2, ["good"], {"duplicate": 1}),
    "nulls of a parquet file": ("a.parquet", _parquet(row("One."), row(None, starter=None, name="n")),
                                [row("One.")["name"]], {"no_text": 1}),
}  # fmt: skip


def _file_in(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir()
    (folder / name).write_bytes(content)
    return folder


def decontaminator(config: RunConfig) -> Decontaminator:
    return Decontaminator(config.contamination, config.benchmark, config.minicode)


def hashes(config: RunConfig) -> dict[str, str]:
    return evaluation_set_hashes(config.contamination, config.benchmark, config.minicode)


def _refused(config: Any, message: str, action: Callable[[Any], object] = choose) -> None:
    with one_line_error(message):
        action(config)


@pytest.mark.parametrize("kind", [*UNREADABLE, *UNUSABLE])
def test_training_problems_that_cannot_be_used_are_one_line(tmp_path: Path, kind: str) -> None:
    name, content, message = (UNREADABLE | UNUSABLE)[kind]
    folder = _file_in(tmp_path / "rows", name, content)
    only_passed = kind.startswith("passed")
    _refused(config_of(tmp_path / "run", folder, name="rows", columns=COLUMNS, only_passed=only_passed), message)
    assert not (tmp_path / "run" / "problems").exists()


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_evaluation_set_that_cannot_be_read_is_one_line(tmp_path: Path, kind: str) -> None:
    name, content, message = UNREADABLE[kind]
    folder = _file_in(tmp_path / "set", name, content)
    sets = {"mine": {"path": str(folder), "columns": ["text"], "id": "name"}}
    config = config_of(tmp_path / "run", tmp_path, contamination={"sets": sets})
    _refused(config, message, decontaminator)
    with pytest.raises(UserError) as caught:
        decontaminator(config)
    assert "problems.columns" not in str(caught.value)
    if "column" in message:
        assert "contamination.sets.mine.columns" in str(caught.value)


@pytest.mark.parametrize("content", [b"\n\n", b'{"text": null, "name": 1}\n', b'{"text": " ?! ", "name": 1}\n'])
def test_an_evaluation_set_without_words_is_refused(tmp_path: Path, content: bytes) -> None:
    sets = {"mine": {"path": str(_file_in(tmp_path / "set", "a.jsonl", content)), "columns": ["text"]}}
    config = config_of(tmp_path / "run", tmp_path, contamination={"sets": sets})
    _refused(config, r"contamination\.sets\.mine\.path = .*none of its \d rows has a word", decontaminator)


@pytest.mark.parametrize("kind", COUNTED)
def test_unusual_rows_are_read_or_left_out_and_counted(tmp_path: Path, kind: str) -> None:
    name, content, ids, dropped = COUNTED[kind]
    chosen = choose(
        config_of(tmp_path / "run", _file_in(tmp_path / "rows", name, content), name="rows", columns=COLUMNS)
    )
    assert [problem.id for problem in chosen.problems] == ids
    assert chosen.manifest.dropped == dropped
    assert len(chosen.dropped) == sum(dropped.values())


def test_a_parquet_file_with_a_repeated_column_is_named(tmp_path: Path) -> None:
    arrays = [pyarrow.array(["x"]), pyarrow.array(["y"]), pyarrow.array(["z"]), pyarrow.array([""])]
    table = pyarrow.Table.from_arrays(arrays, ["question", "question", "question_id", "starter_code"])
    (tmp_path / "rows").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "rows" / "a.parquet")
    _refused(config_of(tmp_path / "run", tmp_path / "rows"), "has more than one column question")


def test_missing_columns_of_rstar_coder_suggest_another_reader(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "rows", [{"question": "q"}])
    _refused(config_of(tmp_path / "run", folder), "no column question_id, starter_code; use problems=rows and name")


def _nothing(path: Path) -> None:
    """Create nothing."""


def _link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "gone")


def _empty_folder(path: Path) -> None:
    path.mkdir()


def _folder_with_a_broken_link(path: Path) -> None:
    jsonl_folder = _file_in(path, "a.jsonl", _lines(GOOD))
    (jsonl_folder / "b.jsonl").symlink_to(path / "gone.jsonl")


def _folder_of_a_folder(path: Path) -> None:
    (path / "inner.jsonl").mkdir(parents=True)


def _named_pipe(path: Path) -> None:
    os.mkfifo(path)


PATHS: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing": (_nothing, "rows.jsonl: does not exist"),
    "a link to nothing": (_link_to_nothing, "rows.jsonl: does not exist"),
    "a folder with a file's name": (
        _empty_folder,
        r"rows.jsonl: the folder has no \.parquet",
    ),
    "a link to nothing in a folder": (_folder_with_a_broken_link, "b.jsonl: is a broken link"),
    "a folder in a folder": (_folder_of_a_folder, r"the folder has no \.parquet"),
    "a named pipe": (_named_pipe, "rows.jsonl: does not exist"),
}


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("reader", ["problems", "contamination", "benchmark"])
def test_a_path_without_a_file_is_one_line(tmp_path: Path, kind: str, reader: str) -> None:
    make, message = PATHS[kind]
    path = tmp_path / "rows.jsonl"
    make(path)
    good = write_jsonl(tmp_path / "good.jsonl", [rstar_row(1, "A problem.")])
    sets = {"mine": {"path": str(path), "columns": ["text"]}} if reader == "contamination" else {}
    benchmark = lcb_section(path) if reader == "benchmark" else None
    source = path if reader == "problems" else good
    config = config_of(tmp_path / "run", source, contamination={"sets": sets}, benchmark=benchmark)
    _refused(config, message)


def test_a_file_with_another_ending_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text\nx\n")
    _refused(
        config_of(tmp_path / "run", tmp_path / "rows.csv"),
        r"problems\.path = .*rows\.csv: its name must end with \.parquet or",
    )


@pytest.mark.parametrize("reader", ["problems", "contamination"])
def test_a_file_without_read_permission_is_one_line(tmp_path: Path, reader: str) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything: run it as another user")
    path = write_jsonl(tmp_path / "rows.jsonl", [rstar_row(1, "A problem.")])
    path.chmod(0)
    sets = {"mine": {"path": str(path), "columns": ["question"]}} if reader == "contamination" else {}
    config = config_of(tmp_path / "run", path, contamination={"sets": sets})
    _refused(config, "rows.jsonl: cannot be read", hashes if sets else choose)


def test_a_disk_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [rstar_row(1, "A problem.")])
    opened = Path.open

    def fail(other: Path, *arguments: Any, **more: Any) -> Any:
        if other == path:
            raise PermissionError(13, "Permission denied", str(other))
        return opened(other, *arguments, **more)

    monkeypatch.setattr(Path, "open", fail)
    _refused(config_of(tmp_path / "run", path), r"rows.jsonl: cannot be read \(Permission denied\)")
