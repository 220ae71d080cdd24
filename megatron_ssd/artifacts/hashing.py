"""Content hashes (SHA-256, hexadecimal) of values, files and folders."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from megatron_ssd.errors import UserError


def hash_json(value: Any) -> str:
    """Hash of a JSON value; equal values hash alike whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hash of a file's bytes. Computed once a process for a file that has not changed."""
    status = path.stat()
    return _sha256_file(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4096)
def _sha256_file(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(folder: Path, *, exclude: frozenset[str] = frozenset({"manifest.json"})) -> str:
    """Hash of every file below ``folder`` by relative path and content; names in ``exclude`` are left out.

    Raises:
        UserError: ``folder`` does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"folder {folder}", rule="does not exist", fix="check the path, or run the stage that makes it")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in exclude)
    return hash_json([[path.relative_to(folder).as_posix(), sha256_file(path)] for path in files])
