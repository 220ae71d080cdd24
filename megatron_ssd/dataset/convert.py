"""Converts one shard of samples to one part of the data set.

A part is ``NAME.bin``, ``.idx``, ``.ids.jsonl`` and, if responses are tokenized again, ``.differences.jsonl``.
``.keys.npy`` has a digest of each sample of the shard, kept or not, and ``.sha256`` the hash of the shard. ``.json``
with the counts is written last and marks the part as complete. An incomplete part is written again.

A document is [prompt, response], and the loss follows from the two lengths. So the end of a response that must carry no
loss is left out of the document. No other token's loss depends on it, so loss and gradient are those of masking, at a
lower cost. Only the load-balancing loss of a mixture of experts would see masked tokens.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.artifacts.jsonl import JsonlWriter
from megatron_ssd.artifacts.samples import iter_samples, key_digest
from megatron_ssd.dataset.filters import COUNTED
from megatron_ssd.dataset.indexed import IndexedWriter
from megatron_ssd.dataset.set_filters import HASH, REASONS, ShardPass, part_file
from megatron_ssd.dataset.workers import CountSamples, counted
from megatron_ssd.errors import UserError
from megatron_ssd.prompts.tokenizer import tokenizer_from_json
from megatron_ssd.schema import Sample

IDS, DIFFERENCES = "ids.jsonl", "differences.jsonl"
KEYS = ".keys.npy"  # the key digests of the samples of the shard, in order, [num_samples]
_COUNTS = ".json"

_COUNTED = ("samples", "documents", "prompt_tokens", "response_tokens", *COUNTED)
_OF_DIFFERENCES = ("differing_samples", "differing_tokens")
_CONTEXT = 4  # ids shown on either side of a difference
_BATCH = 8  # responses tokenized at once; more do not fit the cache of a core


def part_counts(parts: Path, shard: Path) -> dict[str, int] | None:
    """The counts of the part of ``shard``; None if the part is incomplete."""
    if not all(part_file(parts, shard, ending).exists() for ending in (_COUNTS, KEYS, HASH)):
        return None
    counts: dict[str, int] = json.loads(part_file(parts, shard, _COUNTS).read_text(encoding="utf-8"))
    return counts


@dataclass(frozen=True, kw_only=True)
class Converter(ShardPass):
    """Converts shards to parts.

    Attributes:
        reasons: results of a first pass: for each shard, an index into ``REASONS`` per sample. Empty without a first
            pass.
        tokenizer_json: see ``retokenize``; if it is given, differences are written.
        uses_retokenized: whether documents have these ids instead of the sampled ones.
    """

    reasons: dict[Path, NDArray[np.uint8]] = field(default_factory=dict)
    tokenizer_json: str | None = None
    uses_retokenized: bool = False

    def write(self, shard: Path, count_samples: CountSamples) -> None:
        """Write the part of ``shard``.

        Raises:
            UserError: a line is not a sample, or an id is outside the vocabulary.
        """
        names = (*_COUNTED, *(_OF_DIFFERENCES if self.tokenizer_json else ()))
        counts, keys = Counter(dict.fromkeys(names, 0)), array("Q")
        with ExitStack() as files:
            writer = files.enter_context(IndexedWriter(self.file(shard, ""), vocab_size=self.vocab_size))
            ids = files.enter_context(self._jsonl(shard, IDS))
            differences = files.enter_context(self._jsonl(shard, DIFFERENCES)) if self.tokenizer_json else None
            kept = self._kept(shard, counts, keys, count_samples)
            while batch := list(itertools.islice(kept, _BATCH)):
                samples, responses = [sample for sample, _ in batch], [response for _, response in batch]
                if self.tokenizer_json is not None and differences is not None:
                    retokenized = retokenize(self.tokenizer_json, samples)
                    for sample, ids_again in zip(samples, retokenized, strict=True):
                        if found := Difference.between(sample.response_token_ids, ids_again):
                            counts["differing_samples"] += 1
                            counts["differing_tokens"] += found.length
                            differences.write(found.record(sample, ids_again))
                    responses = retokenized if self.uses_retokenized else responses
                for sample, response in zip(samples, responses, strict=True):
                    writer.add(sample.prompt_token_ids, response)
                    ids.write({"problem_id": sample.problem_id, "sample_index": sample.sample_index})
                    counts["documents"] += 1
                    counts["prompt_tokens"] += len(sample.prompt_token_ids)
                    counts["response_tokens"] += len(response)
        np.save(self.file(shard, KEYS), np.asarray(keys))
        write_atomically(self.file(shard, _COUNTS), json.dumps(counts))

    def _kept(
        self, shard: Path, counts: Counter[str], keys: array[int], count_samples: CountSamples
    ) -> Iterator[tuple[Sample, list[int]]]:
        """The samples that are kept, each with the response ids that carry loss; counts every sample."""
        reasons, index = self.reasons.get(shard), 0
        digest = hashlib.sha256() if reasons is None else None  # otherwise the first pass wrote the hash
        for sample in counted(iter_samples(shard, vocab_size=self.vocab_size, digest=digest), count_samples):
            if reasons is not None and index == len(reasons):
                raise self._changed(shard)
            filtered = self.filtered(sample)
            reason = filtered.reason if reasons is None else REASONS[reasons[index]]
            index += 1
            counts.update(filtered.counts(reason))
            counts["samples"] += 1
            keys.append(key_digest(*sample.key))
            if reason is None:
                yield sample, sample.response_token_ids[: filtered.num_trained]
        if reasons is not None and index < len(reasons):
            raise self._changed(shard)
        if digest is not None:
            self.file(shard, HASH).write_text(digest.hexdigest(), encoding="ascii")

    def _changed(self, shard: Path) -> UserError:
        return UserError(f"file {shard}", rule="has changed since an earlier start of this stage measured it",
                         fix=f"remove {self.parts.parent} and start again")  # fmt: skip

    def _jsonl(self, shard: Path, name: str) -> JsonlWriter:
        path = self.file(shard, f".{name}")
        path.unlink(missing_ok=True)  # left by a killed start
        return JsonlWriter(path)


def retokenize(tokenizer_json: str, samples: Sequence[Sample]) -> list[list[int]]:
    """Ids of each response text, followed by the sampled end token if the model stopped by itself.

    A model may spell one text in several ways: it may sample ``ab`` + ``c`` where its tokenizer writes ``a`` + ``bc``.
    Special tokens are not part of the text. So training on the text may train on other ids than those sampled.

    Args:
        tokenizer_json: ``fast_tokenizer(folder).to_str()``, which can be sent to workers.
        samples: those with the responses.

    Raises:
        UserError: a response cannot be encoded as UTF-8.
    """
    tokenizer = _tokenizer(tokenizer_json)
    try:
        encoded = tokenizer.encode_batch_fast([sample.response for sample in samples], add_special_tokens=False)
    except (TypeError, UnicodeEncodeError):
        raise _not_utf8(samples) from None
    return [
        encoding.ids + (sample.response_token_ids[-1:] if sample.finish_reason == "stop" else [])
        for encoding, sample in zip(encoded, samples, strict=True)
    ]


class Difference(NamedTuple):
    """Where the retokenized ids of a response differ from the sampled ones.

    ``position`` is the index of the first differing id; ``length`` is the number of sampled ids between the common
    beginning and the common end.
    """

    position: int
    length: int

    @classmethod
    def between(cls, sampled: Sequence[int], retokenized: Sequence[int]) -> Difference | None:
        """None if they are equal."""
        if sampled == retokenized:
            return None
        shorter = min(len(sampled), len(retokenized))
        one, other = np.asarray(sampled), np.asarray(retokenized)
        begin = _common(one[:shorter], other[:shorter])
        end = _common(one[begin:][::-1][: shorter - begin], other[begin:][::-1][: shorter - begin])
        return cls(begin, len(sampled) - begin - end)

    def record(self, sample: Sample, retokenized: Sequence[int]) -> dict[str, Any]:
        """A line of ``differences.jsonl``."""
        window = slice(max(0, self.position - _CONTEXT), self.position + _CONTEXT + 1)
        return {
            "problem_id": sample.problem_id,
            "sample_index": sample.sample_index,
            "position": self.position,
            "sampled": sample.response_token_ids[window],
            "retokenized": list(retokenized[window]),
            "sampled_tokens": len(sample.response_token_ids),
            "retokenized_tokens": len(retokenized),
            "differing_tokens": self.length,
        }


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Number of leading elements that two arrays of equal length share."""
    wrong = np.flatnonzero(one != other)
    return int(wrong[0]) if len(wrong) else len(one)


@functools.cache
def _tokenizer(tokenizer_json: str) -> Any:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread per worker; there is a worker for every core
    return tokenizer_from_json(tokenizer_json)


def _not_utf8(samples: Sequence[Sample]) -> UserError:
    """The error for the first response that UTF-8 cannot encode."""
    for sample in samples:
        try:
            sample.response.encode()
        except UnicodeEncodeError as error:
            return UserError(
                f"sample {sample.sample_index} of problem {sample.problem_id}",
                rule=f"its response cannot be tokenized ({error.reason} at character {error.start})",
                fix="use preprocess.ids=sampled without preprocess.compare",
            )
    raise AssertionError("every response can be encoded")
