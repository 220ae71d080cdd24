"""Writes files and folders so that a reader sees them complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from megatron_ssd.artifacts.locks import try_lock
from megatron_ssd.errors import UserError


def write_atomically(path: Path, text: str) -> None:
    """Write ``path`` so that a reader sees the old text or the new text, never a part of one."""
    temporary = temporary_path(path)
    temporary.write_text(text, encoding="utf-8")
    fsync_path(temporary)
    temporary.replace(path)


def temporary_path(path: Path) -> Path:
    """The name under which ``write_atomically`` writes ``path``."""
    return path.with_name(f".{path.name}.tmp")


@contextlib.contextmanager
def cache_entry(path: Path) -> Iterator[Path]:
    """A new path at which to write a file or a folder, renamed to ``path`` when the body ends, and removed if it fails.

    Any number of processes may write the same entry at a time; a folder that is there already stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield unfinished
        try:
            unfinished.rename(path)
        except OSError:
            if not path.is_dir():  # otherwise another process was faster
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(final: Path, *, key: str, replace: bool = False) -> Iterator[Path]:
    """A new folder to fill, renamed to ``final`` when the body ends and removed when the body fails.

    For output that is not part of a run; the stages of a run also have manifests (``artifacts.stage``). The next call
    removes what a killed process left behind.

    Args:
        final: must be empty or absent.
        key: the configuration key that names the folder, for messages.
        replace: move aside an existing ``final``; nothing is deleted.

    Raises:
        UserError: ``final`` is in use, or another process is working on it.
    """
    final = final.absolute()
    with folder_errors(key, final):
        if not is_absent_or_empty(final) and not replace:
            raise UserError(f"{key} = {final}", rule="exists and is not empty",
                            fix="name another folder, or set replace=true to move this one aside")  # fmt: skip
        final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(final.name + ".partial")
    with final.with_name(f".{final.name}.lock").open("w") as lock:
        if not try_lock(lock):
            raise UserError(f"{key} = {final}", rule="another process is working on it", fix="wait for it or stop it")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for path in [*partial.rglob("*"), partial]:
            fsync_path(path)
        if not is_absent_or_empty(final):
            move_aside(final, "replaced")
        partial.rename(final)
        fsync_path(final.parent)


def move_aside(path: Path, why: str) -> Path:
    """Rename ``path`` to the first free ``NAME.why-1``, ``-2``, ...; returns its new name. Nothing is deleted."""
    number = 1
    while (aside := path.with_name(f"{path.name}.{why}-{number}")).exists():
        number += 1
    path.rename(aside)
    return aside


def is_absent_or_empty(folder: Path) -> bool:
    """Whether nothing is lost when another folder is renamed to ``folder``."""
    if folder.is_symlink():
        return False
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


@contextlib.contextmanager
def folder_errors(key: str, folder: Path) -> Iterator[None]:
    """Turn an ``OSError`` about ``folder`` (a file with its name, missing permission, ...) into a ``UserError``.

    Args:
        key: the configuration key that names the folder or its parent.
        folder: the only folder that the body reads or creates.

    Raises:
        UserError: the body raised an ``OSError``, unless the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        raise UserError(f"folder {folder}", rule=f"cannot be created ({reason})", fix=f"use another {key}") from None


def fsync_path(path: Path) -> None:
    """Force the content of a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
