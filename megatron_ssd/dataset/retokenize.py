"""Responses tokenized again from their text, and where that differs from what was sampled.

A model may write one text in several ways: it sampled ``ab`` + ``c`` where its tokenizer writes ``a`` + ``bc``. Special
tokens are not in the text at all. So training on the text trains on other ids than were sampled; how often that is the
case is counted here.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from megatron_ssd.errors import UserError
from megatron_ssd.prompts.tokenizer import tokenizer_from_json
from megatron_ssd.schema import Sample

AROUND = 4  # ids that a difference is shown with, on either side
BATCH = 8  # responses tokenized at once; more do not fit the cache of a core


class Retokenizer(NamedTuple):
    """A tokenizer that crosses process borders: ``fast_tokenizer(folder).to_str()``."""

    tokenizer_json: str

    def response_ids(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Ids of each response's text, with the end token that was sampled where the model stopped by itself."""
        tokenizer = _tokenizer(self.tokenizer_json)
        try:
            encoded = tokenizer.encode_batch_fast([sample.response for sample in samples], add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            raise _no_text(samples) from None
        return [
            encoding.ids + (sample.response_token_ids[-1:] if sample.finish_reason == "stop" else [])
            for encoding, sample in zip(encoded, samples, strict=True)
        ]


class Difference(NamedTuple):
    """Where two ways of writing a response part: ``position`` is the first id, ``length`` counts the sampled ids
    outside of the common beginning and the common end."""

    position: int
    length: int

    @classmethod
    def between(cls, sampled: Sequence[int], again: Sequence[int]) -> Difference | None:
        """None where they are equal."""
        if sampled == again:
            return None
        shorter = min(len(sampled), len(again))
        one, other = np.asarray(sampled), np.asarray(again)
        begin = _common(one[:shorter], other[:shorter])
        end = _common(one[begin:][::-1][: shorter - begin], other[begin:][::-1][: shorter - begin])
        return cls(begin, len(sampled) - begin - end)

    def row(self, sample: Sample, again: Sequence[int]) -> dict[str, Any]:
        """A line of ``differences.jsonl``."""
        window = slice(max(0, self.position - AROUND), self.position + AROUND + 1)
        return {
            "problem_id": sample.problem_id,
            "sample_index": sample.sample_index,
            "position": self.position,
            "sampled": sample.response_token_ids[window],
            "retokenized": list(again[window]),
            "sampled_tokens": len(sample.response_token_ids),
            "retokenized_tokens": len(again),
            "differing_tokens": self.length,
        }


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many leading elements two arrays of one length share."""
    wrong = np.flatnonzero(one != other)
    return int(wrong[0]) if len(wrong) else len(one)


@functools.cache
def _tokenizer(tokenizer_json: str) -> Any:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a worker; there is a worker for every core
    return tokenizer_from_json(tokenizer_json)


def _no_text(samples: Sequence[Sample]) -> UserError:
    """For the first response that UTF-8 cannot write."""
    for sample in samples:
        try:
            sample.response.encode()
        except UnicodeEncodeError as error:
            return UserError(
                f"sample {sample.sample_index} of problem {sample.problem_id}",
                rule=f"its response cannot be tokenized ({error.reason} at character {error.start})",
                fix="use preprocess.ids=sampled without preprocess.compare",
            )
    raise AssertionError("every response is text")
