"""A place on disk that the user has named: whether anything stands there, and what the system holds against it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from megatron_ssd.errors import UserError


@contextlib.contextmanager
def named_by(key: str, folder: Path) -> Iterator[None]:
    """Make a ``UserError`` of what the system raises for ``folder``: a file in its way, no right to write, ...

    Args:
        key: what the user calls the folder, or the one that it lies in.
        folder: what is looked at or made in the body, and nothing else.

    Raises:
        UserError: the body raised an ``OSError``; that of a full disk is let through.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        raise UserError(f"folder {folder}", rule=f"cannot be made ({reason})", fix=f"use another {key}") from None


def is_free(folder: Path) -> bool:
    """Whether nothing is lost when ``folder`` is renamed over: it is absent, or an empty folder."""
    if folder.is_symlink():
        return False
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
