"""Computes content hashes (SHA-256, hexadecimal).

Hashes of large files are cached between runs, by the path, size and times of the file: a base model of 60 GB is read
once, not at every start.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def hash_json(value: Any) -> str:
    """Hash of a JSON value; it does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


_CACHED_FROM = 64 << 20  # bytes; below this, reading is as fast as the cache
_DIGEST = re.compile("[0-9a-f]{64}")


def sha256_file(path: Path) -> str:
    """Hash of a file's bytes. Computed once per process for a file that has not changed."""
    status = path.stat()
    return _sha256_file(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4096)
def _sha256_file(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(folder: Path, files: Iterable[Path]) -> str:
    """Hash of ``files``, which are below ``folder``, by relative path and content."""
    return hash_json([[path.relative_to(folder).as_posix(), remembered_sha256(path)] for path in sorted(files)])


def remembered_sha256(path: Path) -> str:
    """``sha256_file``, cached for large files in ``~/.cache/megatron_ssd`` (``$XDG_CACHE_HOME``).

    A cache that cannot be read or written costs only time.
    """
    status = path.stat()
    if status.st_size < _CACHED_FROM:
        return sha256_file(path)
    identity = [str(path.resolve()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    note = _note(hash_json(identity))
    if note is None:
        return sha256_file(path)
    with contextlib.suppress(OSError, ValueError):  # ValueError: bytes that are not ASCII
        if _DIGEST.fullmatch(digest := note.read_text(encoding="ascii")):
            return digest
    digest = sha256_file(path)
    unfinished = note.with_name(f"{note.name}.{os.getpid()}")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(digest, encoding="ascii")
        unfinished.replace(note)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()  # on a full disk, what was written of it
    return digest


def _note(name: str) -> Path | None:
    """The file that caches a hash; None if this user has no home and no ``$XDG_CACHE_HOME``."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return cache / "megatron_ssd" / "sha256" / name
