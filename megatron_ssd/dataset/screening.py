"""What becomes of a sample before it is data: the one place that the conversion asks.

``Screen.decide`` settles one sample. Where a filter must see the whole set, a first pass asks ``Screen.measure`` for
facts of each row, ``whole_set.settle`` makes them reasons, and ``decide`` is handed the row's own. A screen and these
arrays cross process borders cheaply.

A document is [prompt, response], nothing follows the response in it, and its loss follows from the two lengths. So the
end of a response that shall carry no loss is left out of the document: no other token's loss depends on it, and the
training signal is the same as if it were masked, without the computation. Only the balancing term of a mixture of
experts would see masked tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from megatron_ssd.config.dataset import FilterConfig
from megatron_ssd.dataset.filters import Response, reason_to_drop
from megatron_ssd.dataset.scores import Scores
from megatron_ssd.dataset.set_filters import FACTS, REASONS, Facts, response_digest
from megatron_ssd.schema import Sample

COUNTED = ("responses", "no_code", "length_capped", "looping", "end_masked", "end_masked_tokens")
DROPPED = "dropped_"  # before a filter's reason, among the counts


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What becomes of a sample.

    Attributes:
        reason: why it is dropped; None where it is kept.
        response_token_ids: what its document has as response, as sampled up to where the loss ends; empty where it is
            dropped.
        counts: what it adds to the counts of the data set: some of ``COUNTED``, and its reason.
    """

    reason: str | None
    response_token_ids: list[int]
    counts: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Screen:
    """How samples are judged fit for training.

    Attributes:
        filters: what is asked for.
        prompt_opens_thinking: whether prompts end inside a block of reasoning, see ``prompts.extract``.
        scores: of the proxy model; ``measure`` needs them where ``filters.proxy_band`` is set.
    """

    filters: FilterConfig
    prompt_opens_thinking: bool = False
    scores: Scores | None = None

    def decide(self, sample: Sample, settled: int | None = None) -> Decision:
        """What becomes of ``sample``.

        Args:
            sample: as sampled.
            settled: its place in ``REASONS`` where a first pass was made, so that nothing is filtered twice.
        """
        response = self._response(sample)
        reason = reason_to_drop(response) if settled is None else REASONS[settled]
        counts = _counts(response)
        if reason is not None:
            return Decision(reason=reason, response_token_ids=[], counts={**counts, DROPPED + reason: 1})
        ids = sample.response_token_ids
        masked = len(ids) - response.num_trained
        if masked:
            ids = ids[: response.num_trained]
            counts |= {"end_masked": 1, "end_masked_tokens": masked}
        return Decision(reason=None, response_token_ids=ids, counts=counts)

    def measure(self, samples: Iterable[Sample]) -> Facts:
        """What the filters of the whole set must know of each sample."""
        return np.array([self._facts(sample) for sample in samples], dtype=FACTS)

    def _facts(self, sample: Sample) -> tuple[int, int, int, int, float]:
        reason = reason_to_drop(self._response(sample))
        digest = response_digest(sample) if self.filters.drop_duplicates and reason is None else (0, 0)
        score = self.scores.of(sample) if self.scores is not None else float("nan")
        return REASONS.index(reason), len(sample.response), *digest, score

    def _response(self, sample: Sample) -> Response:
        return Response(sample, self.filters, self.prompt_opens_thinking)


def _counts(response: Response) -> dict[str, int]:
    """What any response counts for, kept or not; a prompt that was not run has none."""
    if response.sample.finish_reason == "skipped":
        return {}
    return {
        "responses": 1,
        "no_code": int(response.block is None),
        "length_capped": int(response.is_length_capped),
        "looping": int(response.loop_start is not None),
    }
