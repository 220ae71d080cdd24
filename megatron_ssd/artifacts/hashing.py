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
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.atomic import cache_entry


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


def cache_folder() -> Path:
    """``~/.cache/megatron_ssd`` (``$XDG_CACHE_HOME``), for what can be made again.

    A folder that only lasts as long as this process if there is no home, or it belongs to another user.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "megatron_ssd"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        pass
    return Path(_short_lived_cache().name)


@functools.cache
def _short_lived_cache() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="megatron-ssd-cache-")  # removed at the end of the process


def remembered_sha256(path: Path) -> str:
    """``sha256_file``, cached for large files in ``~/.cache/megatron_ssd`` (``$XDG_CACHE_HOME``).

    A cache that cannot be read or written costs only time.
    """
    status = path.stat()
    if status.st_size < _CACHED_FROM:
        return sha256_file(path)
    identity = [str(path.resolve()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    note = cache_folder() / "sha256" / hash_json(identity)
    with contextlib.suppress(OSError, ValueError):  # ValueError: bytes that are not ASCII
        if _DIGEST.fullmatch(digest := note.read_text(encoding="ascii")):
            return digest
    digest = sha256_file(path)
    with contextlib.suppress(OSError), cache_entry(note) as unfinished:
        unfinished.write_text(digest, encoding="ascii")
    return digest
