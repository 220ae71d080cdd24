"""What sampling needs of an engine, in terms of token ids alone.

The promise: the same request with the same seed gives the same tokens, whatever else is in flight and in whatever
order, on the same machine and engine version. Every request is seeded.
docs/guides/engines.md says how far each engine keeps it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from megatron_ssd.config.generation import SamplingParams

Key = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One response to draw. ``key`` is the caller's name for it, unique among those in flight."""

    key: Key
    prompt_token_ids: list[int]  # at least one, and at most the context less one
    seed: int
    decoding: SamplingParams
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished response. ``token_ids`` end with an end token exactly where ``finish_reason`` is ``stop``."""

    key: Key
    token_ids: list[int]
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """A response whose probability is asked for; nothing is drawn. ``key`` as in ``Request``."""

    key: Key
    prompt_token_ids: list[int]  # at least one
    response_token_ids: list[int]  # at least one; prompt and response together at most the context


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """``mean_logprob`` is the mean of log p(token | all tokens before it) over the response's tokens alone.

    Natural logarithm, at temperature 1 and without any truncation or penalty. An end token in the response counts.
    """

    key: Key
    mean_logprob: float


Job = Request | ScoreRequest
Result = Completion | Score


class Engine(Protocol):
    """An engine in this process. Requests go in one at a time; each step moves all of them on by a token."""

    def add(self, request: Job) -> None:
        """Take a request; it runs from the next step on."""

    def step(self) -> list[Result]:
        """One forward pass; returns what it finished."""


class EngineSpec(Protocol):
    """How to start an engine. Picklable, so that it can start in a process of its own."""

    def environment(self, index: int) -> dict[str, str]:
        """Environment variables of the process that engine number ``index`` runs in."""

    def start(self) -> Engine:
        """Load the model. Raises ``UserError`` where that cannot be."""


class Sampler(Protocol):
    """Decodes requests, from anywhere. One call of ``sample`` or ``score`` at a time, walked to its end."""

    def wait_ready(self) -> None:
        """Wait until decoding can begin. Raises ``UserError`` where an engine cannot start."""

    def sample(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Completions in the order in which they finish. ``requests`` is walked lazily, a little ahead."""

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Score]:
        """Scores in the order in which they finish. Raises ``UserError`` where this sampler cannot score."""
