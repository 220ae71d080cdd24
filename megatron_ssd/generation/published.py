"""Where the samples of a run are, and the scores of these, once their stages have published them."""

from __future__ import annotations

from pathlib import Path

from megatron_ssd.artifacts.manifest import read_manifest

SAMPLES, SCORES = "samples", "scores"  # folders of a run


def sample_shards(run_dir: Path) -> list[Path]:
    """The files of samples, in order. Raises ``UserError`` where the sampling stage has not published."""
    folder = run_dir / SAMPLES
    names = (output["path"] for output in read_manifest(folder).outputs)
    return [folder / name for name in names if Path(name).match("shard-*.jsonl")]
