"""Whether what was read is every sample that was published, each once.

A part of the data set keeps eight bytes a sample of its shard, a digest of (problem id, sample index). All of them
together, sorted, show what comes twice; samples of one digest are read again and compared, so that chance decides
nothing. The first to read a shard hashes it on the way, and the hash is held against the manifest's.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_ssd.artifacts.manifest import Manifest
from megatron_ssd.artifacts.samples import iter_samples
from megatron_ssd.errors import UserError


def key_digest(problem_id: str, sample_index: int) -> int:
    """A digest of what makes a sample unique in a run, of 64 bits."""
    text = f"{sample_index}\0{problem_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def keys_file(parts: Path, shard: Path) -> Path:
    """Where the digests of the samples of ``shard`` are kept, in order, [num_rows]."""
    return parts / f"{shard.stem}.keys.npy"


def hash_file(parts: Path, shard: Path) -> Path:
    """Where the SHA-256 of ``shard`` is kept, as it was when it was read."""
    return parts / f"{shard.stem}.sha256"


def check_complete(parts: Path, shards: list[Path], samples: Manifest) -> None:
    """Hold the samples that were read against those that were published.

    Args:
        parts: the folder of the parts, each with its digests; removed where the samples are refused, since they have to
            change before the stage can end.
        shards: in the order of the data set.
        samples: the manifest of the samples.

    Raises:
        UserError: there are more or fewer than the manifest counts, one comes twice, or a shard is not the one that was
            published.
    """
    keys = [np.load(keys_file(parts, shard), mmap_mode="r") for shard in shards]
    error = _repeated(shards, keys) or _miscounted(shards, keys, samples) or _altered(parts, shards, samples)
    if error is not None:
        shutil.rmtree(parts)
        raise error


def _miscounted(shards: list[Path], keys: list[NDArray[np.uint64]], samples: Manifest) -> UserError | None:
    found, folder = sum(map(len, keys)), shards[0].parent
    published = samples.counts.get("samples")
    if found == published:
        return None
    if published is None:
        return UserError(f"samples of {folder}", rule=f"are {found}, and their manifest does not count them",
                         fix=f"remove {folder} and sample again")  # fmt: skip
    sizes = {output["path"]: output["bytes"] for output in samples.outputs}
    changed = [
        f"; {shard.name} has {len(rows)} of them in {size} bytes, and {sizes[shard.name]} bytes were published"
        for shard, rows in zip(shards, keys, strict=True)
        if (size := shard.stat().st_size) != sizes.get(shard.name, size)
    ]
    return UserError(
        f"samples of {folder}",
        rule=f"are {found}, and {published} were published{''.join(changed[:1])}",
        fix=f"put the files back as they were, or remove {folder} and sample again",
    )


def _altered(parts: Path, shards: list[Path], samples: Manifest) -> UserError | None:
    """The first shard whose bytes differ from what was published, though its samples are as many and as named."""
    published = {output["path"]: output["sha256"] for output in samples.outputs}
    for shard in shards:
        if hash_file(parts, shard).read_text(encoding="ascii") != published[shard.name]:
            return UserError(
                f"file {shard}",
                rule="is not what was published: its SHA-256 differs from the manifest's",
                fix=f"put it back as it was, or remove {shard.parent} and sample again",
            )
    return None


def _repeated(shards: list[Path], keys: list[NDArray[np.uint64]]) -> UserError | None:
    """What is wrong with the first sample that an earlier one has the key of; None where all differ."""
    together = np.concatenate(keys)
    together.sort()
    repeated = np.unique(together[1:][together[1:] == together[:-1]])
    if not len(repeated):
        return None
    places: dict[tuple[str, int], str] = {}
    for shard, digests in zip(shards, keys, strict=True):
        suspects = set(np.flatnonzero(np.isin(digests, repeated)).tolist())
        for row, sample in enumerate(iter_samples(shard)) if suspects else ():
            if row not in suspects:
                continue
            place = f"{shard}:{row + 1}"
            if sample.key in places:
                return UserError(
                    f"{place} with sample {sample.sample_index} of problem {sample.problem_id!r}",
                    rule=f"is there already: {places[sample.key]}",
                    fix=f"mend the line that is wrong, or remove {shard.parent} and sample again",
                )
            places[sample.key] = place
    return None
