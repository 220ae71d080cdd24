"""The pass over all samples that is made first where a filter must see the whole set.

Each shard's facts are a file of their own among the parts (``NAME.facts.npy``), 25 bytes a row, so that a killed run
goes on with the shards that it has not measured.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from megatron_ssd.artifacts.samples import iter_samples
from megatron_ssd.dataset.complete import hash_file
from megatron_ssd.dataset.screening import Screen
from megatron_ssd.dataset.set_filters import Facts, needs_whole_set, settle
from megatron_ssd.dataset.workers import CountRows, counted, run_tasks
from megatron_ssd.progress import progress
from megatron_ssd.schema import Sample


def settle_rows(
    screen: Screen, parts: Path, shards: list[Path], *, vocab_size: int, num_workers: int, total: int | None = None
) -> dict[Path, NDArray[np.uint8]]:
    """For each shard, the place in ``whole_set.REASONS`` of each of its rows; empty where no filter needs a first pass.

    Args:
        screen: how samples are judged.
        parts: the folder that facts are kept in.
        shards: in the order of the data set.
        vocab_size: ids must lie below it.
        num_workers: processes that measure.
        total: samples in all shards, for the progress bar.

    Raises:
        UserError: a line is no sample, or an id is outside the vocabulary.
    """
    if not needs_whole_set(screen.filters):
        return {}
    measurer = _Measurer(screen=screen, parts=parts, vocab_size=vocab_size)
    unfinished = [shard for shard in shards if not (measurer.file(shard).exists() and hash_file(parts, shard).exists())]
    bar: tqdm[Sample] = progress(total=total, desc="measuring", unit="sample")
    with bar:
        for _ in run_tasks(measurer.write, unfinished, num_workers=num_workers, count_rows=bar.update):
            pass
    facts = [measurer.read(shard) for shard in shards]
    reasons = settle(np.concatenate(facts), screen.filters)
    borders = np.cumsum([len(part) for part in facts])[:-1]
    return dict(zip(shards, np.split(reasons, borders), strict=True))


@dataclass(frozen=True, kw_only=True)
class _Measurer:
    """Shards to facts; goes to workers by pickle."""

    screen: Screen
    parts: Path
    vocab_size: int

    def file(self, shard: Path) -> Path:
        """Where the facts of ``shard`` are kept."""
        return self.parts / f"{shard.stem}.facts.npy"

    def write(self, shard: Path, count_rows: CountRows) -> None:
        """Measure ``shard``."""
        unfinished = self.file(shard).with_suffix(".tmp.npy")
        digest = hashlib.sha256()
        samples = iter_samples(shard, vocab_size=self.vocab_size, digest=digest)
        np.save(unfinished, self.screen.measure(counted(samples, count_rows)))
        hash_file(self.parts, shard).write_text(digest.hexdigest(), encoding="ascii")
        unfinished.replace(self.file(shard))

    def read(self, shard: Path) -> Facts:
        """The facts of ``shard``."""
        facts: Facts = np.load(self.file(shard))
        return facts
