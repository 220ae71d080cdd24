"""Workers' files to shards, once every planned sample has a row: the last step before samples are published.

Shards appear one by one, whole and in the plan's order, so a merge that was killed goes on at the first that is not
there. Rows are copied byte for byte: how many workers there were, and who drew what, leaves no trace.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from megatron_ssd.artifacts.atomic import fsync_path
from megatron_ssd.generation.sample_index import SampleIndex
from megatron_ssd.generation.worker_files import remove_rows
from megatron_ssd.progress import progress


def merge(index: SampleIndex) -> dict[str, str]:
    """Write the shards that are not there yet, then remove the workers' rows. In the stage's turn.

    Args:
        index: up to date, and nothing missing.

    Returns:
        Name -> SHA-256 of the shards that this call wrote.
    """
    assert index.num_missing == 0
    hashes = {}
    missing = [(path, keys) for path, keys in index.shards() if not path.exists()]
    for path, keys in progress(missing, desc="writing shards", unit="shard"):
        hashes[path.name] = _write(path, index.whereabouts(keys))
    fsync_path(index.folder)  # the shards' names, before what they were made of goes
    remove_rows(index.folder)
    return hashes


def _write(path: Path, rows: list[tuple[Path, int]]) -> str:
    """Copy the lines that begin at ``rows`` (file, byte offset) into ``path``; returns its SHA-256."""
    digest = hashlib.sha256()
    temporary = path.with_name(f".{path.name}.tmp")
    with contextlib.ExitStack() as stack, temporary.open("wb") as target:
        sources = {source: stack.enter_context(source.open("rb")) for source in {source for source, _ in rows}}
        for source, offset in rows:
            sources[source].seek(offset)
            line = sources[source].readline()
            target.write(line)
            digest.update(line)
        target.flush()
        os.fsync(target.fileno())
    temporary.replace(path)
    return digest.hexdigest()
