"""Filters that look at all samples together.

A first pass over all shards measures each sample in 25 bytes (``FACTS``). Each filter then looks at the samples that
the filters before it keep; the first in ``SET_FILTERS`` that drops a sample gives the reason. The facts of each shard
are a file in the folder of the parts (``NAME.facts.npy``), so that a killed run resumes with the unmeasured shards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from megatron_ssd.artifacts.jsonl import iter_jsonl
from megatron_ssd.artifacts.manifest import Manifest, read_manifest
from megatron_ssd.artifacts.samples import SAMPLES, SCORES, iter_samples, key_digest, samples_manifest
from megatron_ssd.config.dataset import FilterConfig
from megatron_ssd.dataset.filters import FILTERS, FilteredSample
from megatron_ssd.dataset.workers import CountSamples, counted, run_tasks
from megatron_ssd.errors import UserError
from megatron_ssd.progress import progress
from megatron_ssd.schema import Sample

HASH = ".sha256"  # ending of the file with a shard's SHA-256, which the first pass over the shard writes
_FACTS = ".facts.npy"

# What the first pass keeps of a sample: the reason of its own filters, as an index into REASONS; the number of
# characters of the response; the two halves of a digest (see ``response_digest``); the proxy score, NaN if none.
FACTS = np.dtype(
    [("reason", "u1"), ("characters", "<u4"), ("digest_high", "<u8"), ("digest_low", "<u8"), ("score", "<f4")]
)

Facts = NDArray[np.void]  # [num_samples] of FACTS


class SetFilter(NamedTuple):
    """The name that the manifest counts, the key of ``FilterConfig`` that turns it on, and which samples it drops."""

    reason: str
    key: str
    drops: Callable[[Facts, FilterConfig], NDArray[np.bool_]]

    def is_on(self, config: FilterConfig) -> bool:
        """Whether the configuration turns the filter on."""
        return bool(getattr(config, self.key))


def shortest(lengths: NDArray[np.integer[Any]], fraction: float) -> NDArray[np.bool_]:
    """Which samples are among the shortest ``fraction``, [num_samples]; of equal lengths the earlier is dropped first.

    Args:
        lengths: of each sample, [num_samples].
        fraction: of the samples, rounded down.
    """
    chosen = np.zeros(len(lengths), dtype=np.bool_)
    chosen[np.argsort(lengths, kind="stable")[: int(len(lengths) * fraction)]] = True
    return chosen


def repeats(high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which samples have the digest of an earlier sample, [num_samples]."""
    order = np.lexsort((low, high))  # stable: equal digests keep their order
    chosen = np.zeros(len(order), dtype=np.bool_)
    chosen[order[1:]] = (np.diff(high[order]) == 0) & (np.diff(low[order]) == 0)
    return chosen


def outside_band(scores: NDArray[np.floating[Any]], band: tuple[float, float]) -> NDArray[np.bool_]:
    """Which scores are below or above two quantiles, [num_samples]; of equal scores the earlier ranks lower.

    Args:
        scores: of each sample, [num_samples]; NaN is never outside and is not ranked.
        band: two quantiles, rounded to numbers of scores.
    """
    order = np.argsort(scores, kind="stable")[: int(np.count_nonzero(~np.isnan(scores)))]  # NaN sorts last
    low, high = (round(share * len(order)) for share in band)
    chosen = np.zeros(len(scores), dtype=np.bool_)
    chosen[order[:low]] = chosen[order[high:]] = True
    return chosen


SET_FILTERS = (
    SetFilter("duplicate", "drop_duplicates", lambda facts, config: repeats(facts["digest_high"], facts["digest_low"])),
    SetFilter(
        "shortest",
        "drop_shortest_fraction",
        lambda facts, config: shortest(facts["characters"], config.drop_shortest_fraction),
    ),
    SetFilter("no_proxy_score", "proxy_band", lambda facts, config: np.isnan(facts["score"])),
    SetFilter(
        "outside_proxy_band",
        "proxy_band",
        lambda facts, config: outside_band(facts["score"], config.proxy_band or (0.0, 1.0)),
    ),
)

# Index 0 is for samples that are kept.
REASONS: tuple[str | None, ...] = (None, *FILTERS, *(entry.reason for entry in SET_FILTERS))


def needs_first_pass(config: FilterConfig) -> bool:
    """Whether a filter is on that looks at all samples together."""
    return any(entry.is_on(config) for entry in SET_FILTERS)


def drop_reasons(facts: Facts, config: FilterConfig) -> NDArray[np.uint8]:
    """Why each sample is dropped, as indices into ``REASONS``, [num_samples]."""
    reasons: NDArray[np.uint8] = facts["reason"].copy()
    for entry in SET_FILTERS:
        if entry.is_on(config):
            left = np.flatnonzero(reasons == 0)
            reasons[left[entry.drops(facts[left], config)]] = REASONS.index(entry.reason)
    return reasons


def response_digest(sample: Sample) -> tuple[int, int]:
    """A digest that is equal for two responses to a problem that differ only in white space."""
    text = "\0".join((sample.problem_id, " ".join(sample.response.split())))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")


@dataclass(frozen=True)
class Scores:
    """Scores by sample, in twelve bytes each.

    Attributes:
        keys: digests of (problem id, sample index), ascending, [num_scores].
        values: the mean log-probability of each, [num_scores].
    """

    keys: NDArray[np.uint64]
    values: NDArray[np.float32]

    def of(self, sample: Sample) -> float:
        """The score of ``sample``; NaN if there is none."""
        key = np.uint64(key_digest(*sample.key))
        index = int(np.searchsorted(self.keys, key))
        return float(self.values[index]) if index < len(self.keys) and self.keys[index] == key else float("nan")


def scores_manifest(run_dir: Path) -> Manifest:
    """The manifest of the scores of ``run_dir``.

    Raises:
        UserError: there are none, or they are of other samples.
    """
    folder = run_dir / SCORES
    if not (folder / "manifest.json").is_file():
        raise UserError(
            "filters.proxy_band",
            rule=f"needs the scores of a smaller model and there is no {folder}",
            fix="run launch/score.py with proxy.path=SMALLER_MODEL, or set filters.proxy_band=null",
        )
    manifest = read_manifest(folder)
    scored = manifest.inputs.get(SAMPLES)  # scores from elsewhere may not record it
    if scored is not None and scored != samples_manifest(run_dir).content_hash:
        raise UserError(
            f"folder {folder}",
            rule=f"scores other samples than those in {run_dir / SAMPLES}",
            fix="run launch/score.py again with replace=true",
        )
    return manifest


def read_scores(run_dir: Path) -> Scores:
    """The scores of ``run_dir``.

    ``RUN_DIR/scores`` is a published folder. Each line of its ``*.jsonl`` files has ``problem_id``, ``sample_index``
    and ``mean_logprob`` (natural logarithm, mean over the response's tokens, or null), in any order; other fields are
    ignored.

    Raises:
        UserError: there are no scores, or a line is not a score.
    """
    outputs = [run_dir / SCORES / output["path"] for output in scores_manifest(run_dir).outputs]
    records = [
        _score(path, number, record)
        for path in outputs
        if path.suffix == ".jsonl"
        for number, record in enumerate(iter_jsonl(path), start=1)
    ]
    if not any(value == value for _, value in records):
        raise UserError(f"folder {run_dir / SCORES}", rule="contains no score, and filters.proxy_band needs them",
                        fix="score the samples again, or set filters.proxy_band=null")  # fmt: skip
    table = np.array(records, dtype=[("key", "<u8"), ("value", "<f4")])
    table = table[np.argsort(table["key"], kind="stable")]
    return Scores(np.ascontiguousarray(table["key"]), np.ascontiguousarray(table["value"]))


def _score(path: Path, number: int, record: dict[str, Any]) -> tuple[int, float]:
    """(key digest, score) of a line."""
    try:
        value = record["mean_logprob"]
        return key_digest(record["problem_id"], record["sample_index"]), float("nan") if value is None else float(value)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}:{number}",
            rule=f"is not a score of a sample ({type(error).__name__}: {error})",
            fix="each line has problem_id, sample_index and mean_logprob, a number or null",
        ) from None


def part_file(parts: Path, shard: Path, ending: str) -> Path:
    """A file of the part of ``shard`` in the folder ``parts``."""
    return parts / f"{shard.stem}{ending}"


@dataclass(frozen=True, kw_only=True)
class ShardPass:
    """A pass over the samples of shards; sent to workers by pickle.

    Attributes:
        parts: the folder of the parts.
        filters: the filter settings.
        vocab_size: ids must be below it.
        prompt_opens_thinking: see ``FilteredSample``.
    """

    parts: Path
    filters: FilterConfig
    vocab_size: int
    prompt_opens_thinking: bool = False

    def filtered(self, sample: Sample) -> FilteredSample:
        """``sample`` for the filters."""
        return FilteredSample(sample, self.filters, self.prompt_opens_thinking)

    def file(self, shard: Path, ending: str) -> Path:
        """A file of the part of ``shard``."""
        return part_file(self.parts, shard, ending)


@dataclass(frozen=True, kw_only=True)
class FirstPass(ShardPass):
    """Measures the samples of shards.

    Attributes:
        scores: scores of the proxy model; needed if ``filters.proxy_band`` is set.
    """

    scores: Scores | None = None

    def run(self, shards: list[Path], *, num_workers: int, total: int | None = None) -> dict[Path, NDArray[np.uint8]]:
        """For each shard, an index into ``REASONS`` per sample; resumes with the unmeasured shards.

        Args:
            shards: in the order of the data set.
            num_workers: number of processes.
            total: samples in all shards, for the progress bar.

        Raises:
            UserError: a line is not a sample, or an id is outside the vocabulary.
        """
        unfinished = [
            shard for shard in shards if not all(self.file(shard, ending).exists() for ending in (_FACTS, HASH))
        ]
        bar: tqdm[Sample] = progress(total=total, desc="measuring", unit="sample")
        with bar:
            for _ in run_tasks(self.write, unfinished, num_workers=num_workers, count_samples=bar.update):
                pass
        facts: list[Facts] = [np.load(self.file(shard, _FACTS)) for shard in shards]
        reasons = drop_reasons(np.concatenate(facts), self.filters)
        starts = np.cumsum([len(part) for part in facts])[:-1]
        return dict(zip(shards, np.split(reasons, starts), strict=True))

    def write(self, shard: Path, count_samples: CountSamples) -> None:
        """Measure ``shard``."""
        unfinished, digest = self.file(shard, ".facts.tmp.npy"), hashlib.sha256()
        samples = iter_samples(shard, vocab_size=self.vocab_size, digest=digest)
        np.save(unfinished, self.measure(counted(samples, count_samples)))
        self.file(shard, HASH).write_text(digest.hexdigest(), encoding="ascii")
        unfinished.replace(self.file(shard, _FACTS))

    def measure(self, samples: Iterable[Sample]) -> Facts:
        """What the filters need to know of each sample."""
        return np.array([self._facts(sample) for sample in samples], dtype=FACTS)

    def _facts(self, sample: Sample) -> tuple[int, int, int, int, float]:
        reason = self.filtered(sample).reason
        digest = response_digest(sample) if self.filters.drop_duplicates and reason is None else (0, 0)
        score = self.scores.of(sample) if self.scores is not None else float("nan")
        return REASONS.index(reason), len(sample.response), *digest, score
