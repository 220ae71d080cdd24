"""Recognises Git LFS pointers: small texts that a clone without Git LFS has in place of large files."""

from __future__ import annotations

from pathlib import Path

from megatron_ssd.errors import UserError

_FIRST_BYTES = b"version https://git-lfs.github.com/spec/"


def refuse_lfs_pointer(path: Path) -> None:
    """Raise ``UserError`` if the file is a pointer; nothing is said about a file that cannot be read."""
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(_FIRST_BYTES)) == _FIRST_BYTES
    except OSError:
        return
    if is_pointer:
        raise UserError(
            f"file {path}",
            rule="is a Git LFS pointer, which stands for a file that was not downloaded",
            fix="run git lfs pull in its folder, or download the file itself",
        )
