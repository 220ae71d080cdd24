"""A folder that appears whole: filled under another name, forced to disk, renamed last.

For output that belongs to no run; a run's stages have manifests too (``artifacts.stage``).
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_ssd.artifacts.place import is_free, named_by
from megatron_ssd.artifacts.stage import fsync_path, move_aside
from megatron_ssd.errors import UserError


@contextmanager
def whole_folder(final: Path, *, key: str, replace: bool = False) -> Iterator[Path]:
    """A new folder to fill. It gets the name ``final`` when the body ends, and is removed when the body fails.

    What a killed process left of it is removed by the next one.

    Args:
        final: must be empty or absent.
        key: what the user calls it.
        replace: move aside what stands at ``final``; nothing is deleted.

    Raises:
        UserError: ``final`` is in use, or another process is at work on it.
    """
    final = final.absolute()
    with named_by(key, final):
        in_use = not is_free(final)
    if in_use and not replace:
        raise UserError(f"{key} = {final}", rule="exists and is not empty",
                        fix="name another folder, or replace=true to move this one aside")  # fmt: skip
    with named_by(key, final):
        final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(final.name + ".partial")
    with final.with_name(f".{final.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{key} = {final}", rule="another process is at work on it",
                            fix="wait for it or stop it") from None  # fmt: skip
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for path in [*partial.rglob("*"), partial]:
            fsync_path(path)
        if not is_free(final):
            move_aside(final, "replaced")
        partial.rename(final)
        fsync_path(final.parent)
