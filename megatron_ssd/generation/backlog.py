"""Requests that wait for an engine: those that came back from a failed one first, then the stream, walked lazily."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterable
from typing import Generic, TypeVar

from megatron_ssd.generation.engine import Job, Key

_J = TypeVar("_J", bound=Job)


class Backlog(Generic[_J]):
    """What has not been handed to an engine, or has to be handed to another.

    Args:
        requests: the stream; no more of it is read than ``take`` asks for.
    """

    def __init__(self, requests: Iterable[_J]) -> None:
        self._stream = iter(requests)
        self._returned: deque[_J] = deque()
        self._returns = Counter[Key]()

    @property
    def num_returned(self) -> int:
        """Requests that came back and wait."""
        return len(self._returned)

    def take(self, count: int) -> list[_J]:
        """The next ``count``, or what there is."""
        taken = [self._returned.popleft() for _ in range(min(count, len(self._returned)))]
        return taken + list(itertools.islice(self._stream, count - len(taken)))

    def put_back(self, requests: Iterable[_J]) -> None:
        """Take back what an engine did not answer."""
        for request in requests:
            self._returned.append(request)
            self._returns[request.key] += 1

    def times_returned(self, key: Key) -> int:
        """How often the request of that name came back."""
        return self._returns[key]
