"""One shard of samples to one part of the data set: what a worker does.

A part is ``NAME.bin``, ``.idx``, ``.ids.jsonl`` and, where responses are tokenized again, ``.differences.jsonl``;
``.keys.npy`` has a digest of each sample of the shard, kept or not, and ``.sha256`` the shard's own hash (see
``complete``). ``.json`` with its counts is
written last and says that the part is whole. What a killed start began is written anew.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.artifacts.jsonl import JsonlWriter
from megatron_ssd.artifacts.samples import iter_samples
from megatron_ssd.dataset.complete import hash_file, key_digest, keys_file
from megatron_ssd.dataset.indexed import IndexedWriter
from megatron_ssd.dataset.retokenize import BATCH, Difference, Retokenizer
from megatron_ssd.dataset.screening import COUNTED, Screen
from megatron_ssd.dataset.workers import CountRows, counted
from megatron_ssd.errors import UserError
from megatron_ssd.schema import Sample

T = TypeVar("T")

_COUNTED = ("samples", "documents", "prompt_tokens", "response_tokens", *COUNTED)
IDS, DIFFERENCES = "ids.jsonl", "differences.jsonl"


def part_file(parts: Path, shard: Path, ending: str) -> Path:
    """A file that belongs to ``shard`` in the folder of the parts."""
    return parts / f"{shard.stem}{ending}"


def part_counts(parts: Path, shard: Path) -> dict[str, int] | None:
    """What became of the samples of ``shard``; None where its part is not whole."""
    path = part_file(parts, shard, ".json")
    if not all(file.exists() for file in (path, keys_file(parts, shard), hash_file(parts, shard))):
        return None
    counts: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
    return counts


@dataclass(frozen=True, kw_only=True)
class PartWriter:
    """How shards become parts.

    Attributes:
        parts: the folder of the parts.
        screen: what becomes of each sample.
        settled: why rows go where a first pass was made, for each shard (see ``first_pass``); otherwise empty.
        vocab_size: ids must lie below it.
        retokenizer: reads responses again, and differences are written; None where nobody asked.
        takes_retokenized: whether documents have these ids in place of the sampled ones.
    """

    parts: Path
    screen: Screen
    settled: dict[Path, NDArray[np.uint8]]
    vocab_size: int
    retokenizer: Retokenizer | None = None
    takes_retokenized: bool = False

    def write(self, shard: Path, count_rows: CountRows) -> None:
        """Write the part of ``shard``.

        Raises:
            UserError: a line is no sample, or an id is outside the vocabulary.
        """
        counts, keys = Counter(dict.fromkeys(_COUNTED, 0)), array("Q")
        with ExitStack() as files:
            writer = files.enter_context(IndexedWriter(self._file(shard, ""), vocab_size=self.vocab_size))
            ids = files.enter_context(self._jsonl(shard, IDS))
            differences = files.enter_context(self._jsonl(shard, DIFFERENCES)) if self.retokenizer else None
            for batch in _batches(self._kept(shard, counts, keys, count_rows)):
                samples, responses = [sample for sample, _ in batch], [response for _, response in batch]
                if self.retokenizer is not None and differences is not None:
                    again = self.retokenizer.response_ids(samples)
                    _compare(samples, again, differences, counts)
                    responses = again if self.takes_retokenized else responses
                for sample, response in zip(samples, responses, strict=True):
                    writer.add(sample.prompt_token_ids, response)
                    ids.write({"problem_id": sample.problem_id, "sample_index": sample.sample_index})
                    counts["documents"] += 1
                    counts["prompt_tokens"] += len(sample.prompt_token_ids)
                    counts["response_tokens"] += len(response)
        np.save(keys_file(self.parts, shard), np.asarray(keys))
        write_atomically(self._file(shard, ".json"), json.dumps(counts))

    def _kept(
        self, shard: Path, counts: Counter[str], keys: array[int], count_rows: CountRows
    ) -> Iterator[tuple[Sample, list[int]]]:
        """The samples that are kept, each with its response's ids; the others are counted by their reason."""
        settled, rows = self.settled.get(shard), 0
        digest = hashlib.sha256() if settled is None else None  # else the first pass has read it
        for sample in counted(iter_samples(shard, vocab_size=self.vocab_size, digest=digest), count_rows):
            if settled is not None and rows == len(settled):
                raise self._changed(shard)
            decision = self.screen.decide(sample, None if settled is None else int(settled[rows]))
            rows += 1
            counts.update(decision.counts)
            counts["samples"] += 1
            keys.append(key_digest(*sample.key))
            if decision.reason is None:
                yield sample, decision.response_token_ids
        if settled is not None and rows < len(settled):
            raise self._changed(shard)
        if digest is not None:
            hash_file(self.parts, shard).write_text(digest.hexdigest(), encoding="ascii")

    def _changed(self, shard: Path) -> UserError:
        return UserError(f"file {shard}", rule="has changed since an earlier start of this stage measured it",
                         fix=f"remove {self.parts.parent} and start again")  # fmt: skip

    def _file(self, shard: Path, ending: str) -> Path:
        return part_file(self.parts, shard, ending)

    def _jsonl(self, shard: Path, name: str) -> JsonlWriter:
        path = self._file(shard, f".{name}")
        path.unlink(missing_ok=True)  # what a killed start began
        return JsonlWriter(path)


def _compare(samples: list[Sample], again: list[list[int]], differences: JsonlWriter, counts: Counter[str]) -> None:
    """Write where the ids of a batch differ, and count it."""
    for sample, ids in zip(samples, again, strict=True):
        found = Difference.between(sample.response_token_ids, ids)
        counts["differing_samples"] += found is not None
        counts["differing_tokens"] += found.length if found else 0
        if found:
            differences.write(found.row(sample, ids))


def _batches(kept: Iterable[T]) -> Iterator[list[T]]:
    """As many at a time as are tokenized together."""
    iterator = iter(kept)
    while batch := list(itertools.islice(iterator, BATCH)):
        yield batch
