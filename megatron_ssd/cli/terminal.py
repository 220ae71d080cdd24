"""Lets a command write to any terminal or pipe.

A terminal may lack a character of the output, and a pipe's reader may leave early (``| head``).
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

EXIT_READER_LEFT = 128 + signal.SIGPIPE  # as a shell reports a program that the signal ended


@contextlib.contextmanager
def any_output() -> Iterator[None]:
    """Show what the encoding of the output lacks as escapes; exit quietly if the reader of the output has left."""
    if sys.stdout is None:  # it was closed before the start
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process
    if sys.stderr is None:
        sys.stderr = sys.stdout
    streams = [sys.stdout, sys.stderr]
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
        _flush(streams)
    except BrokenPipeError:
        if not _drop_unread(streams):
            raise  # it is about another pipe
        raise SystemExit(EXIT_READER_LEFT) from None
    except SystemExit as end:  # --help and errors; the status of an error is kept
        try:
            _flush(streams)
        except BrokenPipeError:
            _drop_unread(streams)
            raise SystemExit(end.code or EXIT_READER_LEFT) from None
        raise


def _flush(streams: list[TextIO]) -> None:
    for stream in streams:
        stream.flush()


def _drop_unread(streams: list[TextIO]) -> bool:
    """Whether a stream has lost its reader. Its content is dropped; else Python would complain at its end."""
    left = [stream for stream in streams if _reader_left(stream)]
    for stream in left:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    return bool(left)


def _reader_left(stream: TextIO) -> bool:
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:
        return False
    asked = select.poll()
    asked.register(descriptor, 0)  # errors are always reported
    return any(event & select.POLLERR for _, event in asked.poll(0))
