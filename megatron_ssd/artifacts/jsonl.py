"""JSON lines that survive a killed writer.

A row counts once its newline is on disk. A last line without one is what a killed writer left: reopening for writing
cuts it off. Anywhere else a line that is no JSON object is an error that names file and line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from megatron_ssd.errors import UserError

_BLOCK = 1 << 16


class JsonlWriter:
    """Appends rows to ``path``; makes the file and its folder where they are not there."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        heal(path)
        self._file = path.open("ab")

    def write(self, row: dict[str, Any]) -> None:
        """Append one row. It is safe from a SIGKILL of this process at once, from a power cut after ``flush``."""
        # One unbuffered-looking write a row: the kernel then holds whole rows whenever the process dies.
        self._file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        self._file.flush()

    def flush(self) -> None:
        """Force what was written to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close."""
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
            self._file.close()  # the error itself is what the user should see, not a second one from fsync


def heal(path: Path) -> int:
    """Cut a torn last line off ``path``; returns how many bytes went (0 for a whole or missing file)."""
    if not path.exists():
        return 0
    size = path.stat().st_size
    with path.open("rb+") as file:
        end = size
        while end > 0:
            start = max(0, end - _BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        file.truncate(end)
    return size - end


def iter_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of ``path`` in order.

    Raises:
        UserError: the file is missing, or a line is not one JSON object.
    """
    for row, _ in iter_jsonl_offsets(path):
        yield row


def iter_jsonl_offsets(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Rows of ``path`` with the byte offset at which each begins."""
    if not path.is_file():
        raise UserError(f"file {path}", rule="does not exist", fix="check the path, or run the stage that makes it")
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield parse_line(path, number, line), offset
            offset += len(line)


@dataclass
class Place:
    """How far a reader got in a file: bytes and lines of whole rows."""

    offset: int = 0
    lines: int = 0


def iter_whole_rows(path: Path, place: Place) -> Iterator[tuple[dict[str, Any], int]]:
    """Rows after ``place``, with their offsets, of a file that another process may be writing.

    A last line without its newline is left for the next call. ``place`` moves on with each row that is taken.

    Raises:
        UserError: a whole line is not one JSON object.
        FileNotFoundError: the file is not there.
    """
    with path.open("rb") as file:
        file.seek(place.offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            row, begin = parse_line(path, place.lines + 1, line), place.offset
            place.offset += len(line)
            place.lines += 1
            yield row, begin


def parse_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """The row that line ``number`` (from 1) of ``path`` holds. Raises ``UserError`` where it is no JSON object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _broken(path, number, line, str(error)) from None
    if not isinstance(row, dict):
        raise _broken(path, number, line, "not an object")
    return row


def _broken(path: Path, number: int, line: bytes, reason: str) -> UserError:
    shown = line[:60].decode("utf-8", "replace").strip()
    return UserError(
        f"{path}:{number}: {shown!r}",
        rule=f"every line must be one JSON object ({reason})",
        fix="mend or remove that line; the lines before it are unharmed",
    )


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All rows of ``path``. See ``iter_jsonl``."""
    return list(iter_jsonl(path))
