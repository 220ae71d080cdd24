"""Reads rows of a data set one at a time: parquet, JSON lines (also gzipped) or a JSON list, local or on the Hub.

Of parquet files only the requested columns are read, so hundreds of gigabytes of responses are never fetched. A file
that cannot be read is an error with its name and, if there is one, the line.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow
import pyarrow.parquet

from megatron_ssd.artifacts.hashing import hash_json, remembered_sha256
from megatron_ssd.artifacts.hub import find_files, hub_error, is_hidden
from megatron_ssd.errors import UserError, first_line

ENDINGS = (".parquet", ".jsonl", ".jsonl.gz", ".json")
_NULL_WORDS = ("", "none", "null", "nan", "nat", "<na>")
_BATCH_ROWS = 1024
_BUFFER = 1 << 20  # bytes of a parquet column in memory at a time, instead of a complete row group
# First bytes -> kind of file, and the name ending that it needs; None for kinds that are not read.
_MAGIC: dict[bytes, tuple[str, str | None]] = {
    b"PAR1": ("a parquet file", ".parquet"),
    b"\x1f\x8b": ("a gzip file", ".jsonl.gz"),
    b"\xff\xfe": ("UTF-16 text", None),
    b"\xfe\xff": ("UTF-16 text", None),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row and its origin: ``where`` is ``file:line`` (``file:row`` for parquet), counted from 1."""

    where: str
    values: dict[str, Any]

    def error(self, column: str, rule: str, *, fix: str = "fix that row") -> UserError:
        """The error for the value in ``column``, which breaks ``rule``."""
        return UserError(f"{self.where}: {column} = {str(self.values[column])[:60]!r}", rule=rule, fix=fix)

    def text(self, column: str, *, fix: str = "fix that row") -> str:
        """The text in ``column``, empty if it is null. Raises ``UserError``, with ``fix``, if it is not text."""
        value = self.values[column]
        if value is not None and not isinstance(value, str):
            raise self.error(column, f"must be text and is a {type(value).__name__}", fix=fix)
        return value or ""

    def filled_text(self, column: str) -> str:
        """As ``text``. Raises ``UserError`` as well if there is nothing but white space."""
        text = self.text(column)
        if not text.strip():
            raise self.error(column, "must not be empty")
        return text

    def optional_text(self, column: str, *, fix: str = "fix that row") -> str:
        """As ``text``, and empty as well if the column is missing or has a word for null, such as ``None``."""
        return "" if is_null(self.values.get(column)) else self.text(column, fix=fix)


def is_null(value: Any) -> bool:
    """Whether ``value`` is null or empty, or what programs write for null: NaN, or a word such as ``None``."""
    return value is None or value != value or (isinstance(value, str) and value.strip().lower() in _NULL_WORDS)


@dataclass(frozen=True)
class Table:
    """A data set's files in order. ``revision`` is the Hub's commit, None for local files.

    ``columns_fix`` is the fix in the error for a missing column.
    """

    files: tuple[str, ...]
    revision: str | None
    columns_fix: str

    @property
    def identity(self) -> str:
        """Identifies the rows: the Hub's commit, or a hash of the contents of local files in order, not of their names.

        Raises:
            UserError: a file cannot be read.
        """
        if self.revision is not None:
            return self.revision
        hashes = []
        for name in self.files:
            with _readable(name):
                hashes.append(remembered_sha256(Path(name)))
        return hash_json(hashes)

    def rows(self, columns: Sequence[str] | None) -> Iterator[Row]:
        """Every row with ``columns`` (None for all columns), in file order.

        Raises:
            UserError: a file cannot be read, or a column is missing.
        """
        wanted = None if columns is None else list(dict.fromkeys(columns))
        for name in self.files:
            with _readable(name), self._open(name) as stream:
                _check_first_bytes(name, stream)
                yield from self._read(name, stream, wanted)

    def _open(self, name: str) -> IO[bytes]:
        if self.revision is None:
            return Path(name).open("rb")
        from huggingface_hub import HfFileSystem, hf_hub_download  # slow to import, and local files do not need it

        if name.endswith(".parquet"):  # fetches only the columns, and stores nothing
            stream: IO[bytes] = HfFileSystem().open(name, "rb", revision=self.revision)
            return stream
        _, owner, repository, file = name.split("/", 3)
        return Path(
            hf_hub_download(f"{owner}/{repository}", file, repo_type="dataset", revision=self.revision)
        ).open("rb")  # fmt: skip

    def _read(self, name: str, stream: IO[bytes], columns: list[str] | None) -> Iterator[Row]:
        if name.endswith(".parquet"):
            yield from self._parquet_rows(name, stream, columns)
            return
        rows = enumerate(_json_list(name, stream), start=1) if name.endswith(".json") else _json_lines(name, stream)
        for number, values in rows:
            where = f"{name}:{number}"
            if not isinstance(values, dict):
                raise UserError(
                    where,
                    rule=f"is a {type(values).__name__}, and every row must be an object",
                    fix="fix that row; a file that is one list of rows needs a name that ends with .json",
                )
            if columns is None:
                yield Row(where, values)
                continue
            if not values.keys() >= set(columns):
                raise self._missing(where, list(values), columns)
            yield Row(where, {column: values[column] for column in columns})

    def _parquet_rows(self, name: str, stream: IO[bytes], columns: list[str] | None) -> Iterator[Row]:
        try:
            with pyarrow.parquet.ParquetFile(stream, buffer_size=_BUFFER) as table:
                names = table.schema_arrow.names
                columns = names if columns is None else columns
                if not set(names) >= set(columns):
                    raise self._missing(name, names, columns)
                if twice := [column for column in columns if names.count(column) > 1]:
                    raise _broken(name, f"has more than one column {', '.join(twice)}")
                number = 0
                for batch in table.iter_batches(columns=columns, batch_size=_BATCH_ROWS):
                    for values in batch.to_pylist():
                        number += 1
                        yield Row(f"{name}:{number}", values)
        except UserError:
            raise
        except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
            raise _broken(name, f"is not a complete parquet file ({_reason(error)})") from None

    def _missing(self, where: str, found: Sequence[str], wanted: Sequence[str]) -> UserError:
        return UserError(
            f"{where} with columns {', '.join(map(str, found)) or 'none'}",
            rule=f"has no column {', '.join(name for name in wanted if name not in found)}",
            fix=self.columns_fix,
        )


def open_table(
    path: str, *, key: str, columns_fix: str = "", revision: str | None = None, hub_folder: str = ""
) -> Table:
    """Find the data set at ``path``.

    Args:
        path: a file, a folder (searched with its subfolders, without hidden ones), or a Hub id.
        key: the configuration key of ``path``, for messages.
        columns_fix: the fix in the error for a missing column.
        revision: branch or commit of the Hub repository.
        hub_folder: the folder to search in the Hub repository.

    Raises:
        UserError: nothing is at ``path``, or the Hub does not serve it.
    """
    local = find_files(path, key=key, ending=ENDINGS)
    if local is not None:
        return Table(files=tuple(map(str, local)), revision=None, columns_fix=columns_fix)
    from huggingface_hub import HfApi, HfFileSystem  # slow to import, and local files do not need it
    from huggingface_hub.errors import HTTPError

    try:
        commit = HfApi().dataset_info(path, revision=revision).sha
        pattern = f"datasets/{path}/{hub_folder + '/' if hub_folder else ''}**"
        names = sorted(
            name
            for name in HfFileSystem().glob(pattern, revision=commit)
            if name.endswith(ENDINGS) and not is_hidden(PurePosixPath(name))
        )
        if not names:
            raise FileNotFoundError(f"no {' or '.join(ENDINGS)} file in it")
        return Table(files=tuple(names), revision=commit, columns_fix=columns_fix)
    except (OSError, HTTPError) as error:
        raise hub_error(path, key=key, error=error, repo_type="dataset") from error


def _check_first_bytes(name: str, stream: IO[bytes]) -> None:
    """Refuse a file that is empty (after a failed download) or whose content does not match its name."""
    head = stream.read(4)
    stream.seek(0)
    if not head:
        raise UserError(f"file {name}", rule="is empty", fix="download it again, or remove it")
    for magic, (kind, ending) in _MAGIC.items():
        if head.startswith(magic) and (ending is None or not name.endswith(ending)):
            fix = "save it as UTF-8" if ending is None else f"give it a name that ends with {ending}"
            raise UserError(f"file {name}", rule=f"is {kind} by its first bytes, whatever its name says", fix=fix)


def _json_lines(name: str, stream: IO[bytes]) -> Iterator[tuple[int, Any]]:
    opened = gzip.GzipFile(fileobj=stream) if name.endswith(".gz") else contextlib.nullcontext(stream)
    number = 0
    try:
        with opened as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, json.loads(line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _broken(f"{name}:{number + 1}", f"is not a complete gzip file ({_reason(error)})") from None
    except (ValueError, RecursionError) as error:
        raise _broken(f"{name}:{number}", f"is not JSON ({_reason(error)})") from None


def _json_list(name: str, stream: IO[bytes]) -> list[Any]:
    try:
        values = json.load(stream)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"file {name}",
            rule=f"is not JSON ({_reason(error)})",
            fix="fix it; a file with one row per line needs a name that ends with .jsonl",
        ) from None
    if not isinstance(values, list):
        raise _broken(name, "does not contain a list of rows")
    return values


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn errors of the operating system or the Hub while ``name`` is read into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"file {name}",
            rule=f"cannot be read ({error.strerror or _reason(error)})",
            fix="check its permissions and the network, or download it again",
        ) from None


def _broken(where: str, rule: str) -> UserError:
    return UserError(where, rule=rule, fix="fix the file or download it again")


def _reason(error: BaseException) -> str:
    return first_line(error)[:200]
