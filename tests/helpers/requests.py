"""Requests for engines and samplers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.generation.engine import Completion, Request, Sampler
from megatron_ssd.prompts.prompt import Prompt


def request(
    number: int,
    *,
    prompt_token_ids: Sequence[int] = (1,),
    seed: int | None = None,
    params: SamplingParams | None = None,
    max_tokens: int = 8,
) -> Request:
    """The request with the key ("p", number); its seed is ``number`` by default."""
    return Request(
        prompt=Prompt(problem_id="p", messages=[], token_ids=list(prompt_token_ids)),
        sample_index=number,
        seed=number if seed is None else seed,
        params=params or SamplingParams(),
        max_tokens=max_tokens,
    )


class CountedRequests:
    """Iterates over ``requests``, and counts in ``num_read`` how many were read."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self.num_read = 0
        self._requests = iter(requests)

    def __iter__(self) -> Iterator[Request]:
        return self

    def __next__(self) -> Request:
        one = next(self._requests)
        self.num_read += 1
        return one


def sample_all(sampler: Sampler, requests: Sequence[Request]) -> dict[tuple[str, int], Completion]:
    """The completion of every request, by key; each must come once."""
    return by_key(sampler.sample(requests), expected=len(requests))


def by_key(
    answers: Iterable[tuple[Request, Completion]], *, expected: int | None = None
) -> dict[tuple[str, int], Completion]:
    """Completions by the key of their request; fails if a key occurs twice."""
    pairs = list(answers)
    assert len({request.key for request, _ in pairs}) == len(pairs) == (len(pairs) if expected is None else expected)
    return {request.key: completion for request, completion in pairs}
