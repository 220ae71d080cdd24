"""Where the samples of a run are, and the scores of these, once their stages have published them."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_ssd.artifacts.manifest import Manifest, read_manifest
from megatron_ssd.errors import UserError

SAMPLES, SCORES = "samples", "scores"  # folders of a run


def samples_manifest(run_dir: Path) -> Manifest:
    """The manifest of the samples. Raises ``UserError`` where the sampling stage has not published."""
    return read_manifest(run_dir / SAMPLES, stage=SAMPLES)


def sample_shards(run_dir: Path) -> list[Path]:
    """The files of samples, in order.

    Raises:
        UserError: the sampling stage has not published, or a shard that it did is gone or emptied.
    """
    folder, shards = run_dir / SAMPLES, []
    for output in samples_manifest(run_dir).outputs:
        if not Path(output["path"]).match("shard-*.jsonl"):
            continue
        path = folder / output["path"]
        is_there = os.path.isfile(path)  # noqa: PTH113 (Path.is_file raises for a name that is too long)
        if not is_there or (output["bytes"] and not path.stat().st_size):
            raise UserError(
                f"file {path}",
                rule=f"{'is empty' if is_there else 'does not exist'}, and the manifest beside it counts "
                f"{output['bytes']} bytes of it",
                fix=f"put it back, or remove {folder} and sample again",
            )
        shards.append(path)
    if not shards:
        raise UserError(
            f"folder {folder}", rule="its manifest names no shard-*.jsonl", fix="remove it and sample again"
        )
    return shards
