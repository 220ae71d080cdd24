"""Files with one JSON object per line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write ``rows`` to ``path``, gzipped if its name ends in ``.gz``."""
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def complete_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file whose last line may be cut; none if there is no file."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def samples_by_key(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The complete records of all files in ``folder``, by problem and sample index; each must be there once."""
    found = [record for path in sorted(folder.glob("*.jsonl")) for record in complete_records(path)]
    by_key = {(record["problem_id"], record["sample_index"]): record for record in found}
    assert len(by_key) == len(found), "a sample was written twice"
    return by_key
