"""Requests for engines and samplers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
    """The request with the key ("p", number), whose seed is its number by default."""
    return Request(
        prompt=Prompt(problem_id="p", messages=[], token_ids=list(prompt_token_ids)),
        sample_index=number,
        seed=number if seed is None else seed,
        params=params or SamplingParams(),
        max_tokens=max_tokens,
    )


def draw(sampler: Sampler, requests: Sequence[Request]) -> dict[tuple[str, int], Completion]:
    """Sample all requests; returns the completions by key and fails unless there is one per request."""
    return by_key(sampler.sample(requests), expected=len(requests))


def by_key(
    answers: Iterable[tuple[Request, Completion]], *, expected: int | None = None
) -> dict[tuple[str, int], Completion]:
    """Completions by the key of their request; fails if a key occurs twice."""
    pairs = list(answers)
    assert len({request.key for request, _ in pairs}) == len(pairs) == (len(pairs) if expected is None else expected)
    return {request.key: completion for request, completion in pairs}
