"""Interfaces of inference engines, in terms of token ids.

Every request is seeded. On the same machine and engine version, the same request with the same seed gives the same
tokens, regardless of the other requests in flight and of their order. docs/guides/engines.md says how far each engine
keeps this promise.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

from tqdm import tqdm

from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.progress import progress
from megatron_ssd.prompts.prompt import Prompt


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """One response to draw.

    ``skip_reason`` says why the prompt cannot be run. It is empty if it can; only such requests go to an engine.
    """

    prompt: Prompt
    sample_index: int
    seed: int
    params: SamplingParams
    max_tokens: int
    skip_reason: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """(problem id, sample index)."""
        return self.prompt.problem_id, self.sample_index

    @property
    def prompt_token_ids(self) -> list[int]:
        """Token ids of the prompt: at least one, and fewer than the context holds."""
        return self.prompt.token_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished response. ``token_ids`` end with an end token exactly if ``finish_reason`` is ``stop``."""

    token_ids: list[int]
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoreRequest:
    """A response to score; nothing is drawn.

    The score is the mean of log p(token | all tokens before it) over the response's tokens: natural logarithm, at
    temperature 1, without truncation or penalty. An end token in the response counts.
    """

    key: tuple[str, int]  # problem id, sample index
    prompt_token_ids: list[int]  # at least one
    response_token_ids: list[int]  # at least one; prompt and response together fit the context


AnyRequest = Request | ScoreRequest
Result = Completion | float  # what a Request and a ScoreRequest get
_R = TypeVar("_R", bound=AnyRequest)


class Engine(Protocol):
    """An engine in this process. Requests are added one at a time; each step adds a token to all of them."""

    def add(self, number: int, request: AnyRequest) -> None:
        """Add a request under a number that the caller chooses; it runs from the next step on."""

    def step(self) -> list[tuple[int, Result]]:
        """One forward pass; returns the requests that it finished, by number."""


class EngineSpec(Protocol):
    """How to start an engine. It can be pickled, so that the engine can start in another process."""

    def environment(self, index: int) -> dict[str, str]:
        """Environment variables of the process in which engine ``index`` runs."""

    def start(self) -> Engine:
        """Load the model. Raises ``UserError`` if that fails."""


class Sampler(Protocol):
    """Runs requests on one engine or many. One call of ``sample`` or ``score`` at a time, consumed to its end."""

    def wait_ready(self) -> None:
        """Wait until the engines have loaded. Raises ``UserError`` if one cannot start."""

    def sample(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Completion]]:
        """Each request with its completion, as they finish. ``requests`` is read lazily, a little ahead."""

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[tuple[ScoreRequest, float]]:
        """Each request with its score, as they finish. Raises ``UserError`` if this sampler cannot score."""


class RequestQueue(Generic[_R]):
    """Requests that wait for an engine: first those that a failed engine did not answer, then the stream.

    Args:
        requests: the stream; no more of it is read than ``take`` asks for.
    """

    def __init__(self, requests: Iterable[_R]) -> None:
        self._stream = iter(requests)
        self._returned: deque[_R] = deque()
        self._returns = Counter[_R]()

    @property
    def num_returned(self) -> int:
        """Requests that were put back and wait."""
        return len(self._returned)

    def take(self, count: int) -> list[_R]:
        """The next ``count`` requests, or fewer if no more are left."""
        taken = [self._returned.popleft() for _ in range(min(count, len(self._returned)))]
        return taken + list(itertools.islice(self._stream, count - len(taken)))

    def put_back(self, requests: Iterable[_R]) -> None:
        """Put back requests that an engine did not answer."""
        for request in requests:
            self._returned.append(request)
            self._returns[request] += 1

    def times_returned(self, request: _R) -> int:
        """How often ``request`` was put back."""
        return self._returns[request]


@dataclass
class SamplingStats:
    """Counts of one call of ``sample_all``."""

    tokens: int = 0
    seconds: float = 0.0
    finish_reasons: Counter[str] = field(default_factory=Counter)

    @property
    def tokens_per_second(self) -> float:
        """Sampled tokens per second, over the whole call."""
        return self.tokens / self.seconds if self.seconds else 0.0


def sample_all(
    sampler: Sampler,
    requests: Sequence[Request],
    on_completion: Callable[[Request, Completion], None],
    *,
    desc: str = "sampling",
    done_before: int = 0,
) -> SamplingStats:
    """Sample a response to every request, with a progress bar.

    Args:
        sampler: the engines.
        requests: what to draw; sampling parameters may differ between requests.
        on_completion: called once per request as its response finishes, in this thread.
        desc: text of the progress bar.
        done_before: requests that an earlier start finished, for the progress bar.

    Raises:
        UserError: an engine could not start or died. Finished responses were passed to ``on_completion``.
    """
    stats = SamplingStats()
    if not requests:
        return stats
    sampler.wait_ready()  # loading does not count as sampling
    started = time.monotonic()
    total = done_before + len(requests)
    bar: tqdm[None] = progress(total=total, initial=done_before, desc=desc, unit="response")
    with bar:
        for request, completion in sampler.sample(requests):
            on_completion(request, completion)
            stats.tokens += len(completion.token_ids)
            stats.finish_reasons[completion.finish_reason] += 1
            stats.seconds = time.monotonic() - started
            reasons = " ".join(f"{reason} {count}" for reason, count in sorted(stats.finish_reasons.items()))
            bar.set_postfix_str(f"{stats.tokens_per_second:,.0f} tokens/s, {reasons}", refresh=False)
            bar.update()
    return stats
