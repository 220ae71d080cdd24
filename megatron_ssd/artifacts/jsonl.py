"""Reads or writes JSON lines that survive a killed writer.

A record counts once its newline is on disk. A last line without a newline was left by a killed writer and is removed
when the file is opened for writing. Any other line that is not a JSON object raises an error with file and line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from megatron_ssd.artifacts.hub import refuse_lfs_pointer
from megatron_ssd.errors import UserError

_BLOCK = 1 << 16


class JsonlWriter:
    """Appends records to ``path``; creates the file and its folder if they do not exist."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _truncate_partial_line(path)
        self._file = path.open("ab")

    def write(self, record: dict[str, Any]) -> None:
        """Append a record. It survives a SIGKILL of this process at once, and a power cut after ``flush``."""
        # One write call per record: the kernel then has complete records only, whenever the process dies.
        self._file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        self._file.flush()

    def flush(self) -> None:
        """Force all records to disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Force all records to disk and close the file. May be called again."""
        if not self._file.closed:
            self.flush()
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._file.close()  # the user should see the error itself, not a second one from fsync


def _truncate_partial_line(path: Path) -> None:
    """Remove an incomplete last line from ``path``, if there is such a file."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        file.truncate(end)


def iter_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Records of ``path`` in order.

    Raises:
        UserError: the file is missing, or a line is not one JSON object.
    """
    if not path.is_file():
        raise UserError(
            f"file {path}", rule="does not exist", fix="check the path, or run the stage that writes this file"
        )
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield parse_line(path, number, line)


@dataclass
class FileCursor:
    """How far a reader got in a file: the bytes and the lines of complete records."""

    offset: int = 0
    lines: int = 0


def iter_complete_records(path: Path, cursor: FileCursor) -> Iterator[tuple[dict[str, Any], int]]:
    """Records after ``cursor``, with their offsets, of a file that is being written or whose writer was killed.

    A last line without its newline is left for the next call. ``cursor`` advances with each record.

    Raises:
        UserError: a complete line is not one JSON object.
        FileNotFoundError: there is no such file.
    """
    with path.open("rb") as file:
        file.seek(cursor.offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            record, begin = parse_line(path, cursor.lines + 1, line), cursor.offset
            cursor.offset += len(line)
            cursor.lines += 1
            yield record, begin


def parse_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """The record in line ``number`` (from 1) of ``path``. Raises ``UserError`` if it is not a JSON object."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _broken(path, number, line, str(error)) from None
    if not isinstance(record, dict):
        raise _broken(path, number, line, "not an object")
    return record


def _broken(path: Path, number: int, line: bytes, reason: str) -> UserError:
    refuse_lfs_pointer(path)
    shown = line[:60].decode("utf-8", "replace").strip()
    return UserError(
        f"{path}:{number}: {shown!r}",
        rule=f"every line must be one JSON object ({reason})",
        fix="fix or remove that line; the lines before it are intact",
    )


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All records of ``path``, see ``iter_jsonl``."""
    return list(iter_jsonl(path))
