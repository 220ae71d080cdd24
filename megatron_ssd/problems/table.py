"""Rows of a data set, one at a time: parquet, JSON lines (also gzipped) or a JSON list, here or on the Hub.

Only the columns that are asked for are read from parquet, so that responses of hundreds of gigabytes stay where they
are. A file that cannot be read is an error that names it, with the line where there is one.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.parquet

from megatron_ssd.artifacts.hashing import hash_json, sha256_file
from megatron_ssd.errors import UserError
from megatron_ssd.problems.location import find_files, hub_error

ENDINGS = (".parquet", ".jsonl", ".jsonl.gz", ".json")
_BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Row:
    """One row and where it is from: ``where`` is ``file:line`` (``file:row`` for parquet), counted from 1."""

    where: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A data set's files in order. ``revision`` is the Hub's commit, None for local files."""

    files: tuple[str, ...]
    revision: str | None

    @property
    def identity(self) -> str:
        """What the rows are: the Hub's commit, or a hash of local files' contents in order, whatever their names."""
        return self.revision or hash_json([sha256_file(Path(name)) for name in self.files])

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """Every row with ``columns``, in file order.

        Raises:
            UserError: a file cannot be read, or a column is missing.
        """
        for name in self.files:
            with self._open(name) as stream:
                yield from _read(name, stream, columns)

    def _open(self, name: str) -> IO[bytes]:
        if self.revision is None:
            return Path(name).open("rb")
        from huggingface_hub import HfFileSystem

        stream: IO[bytes] = HfFileSystem().open(name, "rb", revision=self.revision)
        return stream


def open_table(path: str, *, key: str, revision: str | None = None, hub_folder: str = "") -> Table:
    """The data set at ``path``.

    Args:
        path: a file, a folder (searched with its subfolders), or a Hub id.
        key: the configuration key it came from, for messages.
        revision: branch or commit of the Hub repository.
        hub_folder: where in the Hub repository to look.

    Raises:
        UserError: nothing is there, or the Hub does not serve it.
    """
    local = find_files(path, key=key, ending=ENDINGS)
    if local is not None:
        return Table(files=tuple(map(str, local)), revision=None)
    from huggingface_hub import HfApi, HfFileSystem
    from huggingface_hub.errors import HTTPError

    try:
        commit = HfApi().dataset_info(path, revision=revision).sha
        pattern = f"datasets/{path}/{hub_folder + '/' if hub_folder else ''}**"
        names = sorted(name for name in HfFileSystem().glob(pattern, revision=commit) if name.endswith(ENDINGS))
        if not names:
            raise FileNotFoundError(f"no {' or '.join(ENDINGS)} file in it")
        return Table(files=tuple(names), revision=commit)
    except (OSError, HTTPError) as error:
        raise hub_error(path, key=key, error=error) from error


def _read(name: str, stream: IO[bytes], columns: Sequence[str]) -> Iterator[Row]:
    if name.endswith(".parquet"):
        yield from _parquet_rows(name, stream, columns)
    elif name.endswith(".json"):
        yield from _checked(name, enumerate(_json_list(name, stream), start=1), columns)
    else:
        yield from _checked(name, _json_lines(name, stream), columns)


def _parquet_rows(name: str, stream: IO[bytes], columns: Sequence[str]) -> Iterator[Row]:
    try:
        with pyarrow.parquet.ParquetFile(stream) as table:
            _check_columns(name, table.schema_arrow.names, columns)
            number = 0
            for batch in table.iter_batches(columns=list(columns), batch_size=_BATCH_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{name}:{number}", values)
    except (pyarrow.ArrowException, OSError) as error:
        raise _broken(name, f"is no whole parquet file ({_first_line(error)})") from None


def _json_lines(name: str, stream: IO[bytes]) -> Iterator[tuple[int, Any]]:
    opened = gzip.GzipFile(fileobj=stream) if name.endswith(".gz") else contextlib.nullcontext(stream)
    number = 0
    try:
        with opened as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, json.loads(line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _broken(f"{name}:{number + 1}", f"is no whole gzip file ({_first_line(error)})") from None
    except (ValueError, RecursionError) as error:
        raise _broken(f"{name}:{number}", f"is no JSON ({_first_line(error)})") from None


def _json_list(name: str, stream: IO[bytes]) -> list[Any]:
    try:
        values = json.load(stream)
    except (ValueError, RecursionError) as error:
        raise _broken(name, f"is no JSON ({_first_line(error)})") from None
    if not isinstance(values, list):
        raise _broken(name, "holds no list of rows")
    return values


def _checked(name: str, rows: Iterator[tuple[int, Any]], columns: Sequence[str]) -> Iterator[Row]:
    for number, values in rows:
        where = f"{name}:{number}"
        if not isinstance(values, dict):
            raise _broken(where, f"is a {type(values).__name__}, and every row must be an object")
        _check_columns(where, list(values), columns)
        yield Row(where, {column: values[column] for column in columns})


def _check_columns(where: str, found: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(
            f"{where} with columns {', '.join(map(str, found)) or 'none'}",
            rule=f"has no column {', '.join(missing)}",
            fix="name the columns of your file in problems.columns",
        )


def _broken(where: str, rule: str) -> UserError:
    return UserError(where, rule=rule, fix="mend the file or download it again")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
