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
from pathlib import Path
from typing import Any

from megatron_ssd.errors import UserError


def hash_json(value: Any) -> str:
    """Hash of a JSON value; it does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


_CACHED_FROM = 64 << 20  # bytes; below this, reading is as fast as the cache


def sha256_file(path: Path) -> str:
    """Hash of a file's bytes. Computed once per process for a file that has not changed."""
    status = path.stat()
    return _sha256_file(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4096)
def _sha256_file(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(folder: Path) -> str:
    """Hash of every file below ``folder`` by relative path and content, except manifests.

    Raises:
        UserError: ``folder`` does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"folder {folder}", rule="does not exist", fix="check the path, or run the stage that makes it")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return hash_json([[path.relative_to(folder).as_posix(), remembered_sha256(path)] for path in files])


def cache_folder() -> Path:
    """``~/.cache/megatron_ssd`` (``$XDG_CACHE_HOME``), for what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "megatron_ssd"


def remembered_sha256(path: Path) -> str:
    """``sha256_file``, cached for large files in ``~/.cache/megatron_ssd`` (``$XDG_CACHE_HOME``)."""
    status = path.stat()
    if status.st_size < _CACHED_FROM:
        return sha256_file(path)
    identity = [str(path.resolve()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    note = cache_folder() / "sha256" / hash_json(identity)
    if note.is_file() and len(digest := note.read_text(encoding="ascii")) == hashlib.sha256().digest_size * 2:
        return digest
    digest = sha256_file(path)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs only time
        note.parent.mkdir(parents=True, exist_ok=True)
        unfinished = note.with_name(f"{note.name}.{os.getpid()}")
        unfinished.write_text(digest, encoding="ascii")
        unfinished.replace(note)
    return digest
