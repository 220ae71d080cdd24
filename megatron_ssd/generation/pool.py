"""Engines side by side, fed from one stream of requests.

Each engine holds a bounded number of requests and gets another when one finishes, so a slow engine or a long response
holds nobody up, and a kill loses only what is in flight.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from multiprocessing.connection import wait
from types import TracebackType
from typing import Self

from megatron_ssd.generation.engine_process import EngineProcess
from megatron_ssd.generation.sampler import Completion, EngineSpec, Request


class EnginePool:
    """A ``Sampler`` over processes. A context manager; leaving it ends the processes.

    The processes start at once and load side by side with whatever the caller does before ``sample``.

    Args:
        spec: how to start an engine.
        size: how many.
        max_in_flight: requests that one engine holds, a little more than it runs at a time.

    Raises:
        UserError: on the first use, where an engine could not start; later, where one died.
    """

    def __init__(self, spec: EngineSpec, *, size: int, max_in_flight: int) -> None:
        self._ready = False
        self._engines: list[EngineProcess] = []
        try:
            for index in range(size):
                self._engines.append(EngineProcess(spec, index=index, max_in_flight=max_in_flight))
        except BaseException:
            self.close()
            raise

    def wait_ready(self) -> None:
        """Wait until every engine has loaded."""
        if not self._ready:
            for engine in self._engines:
                engine.wait_ready()
            self._ready = True

    def sample(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Completions in the order in which they finish. One call at a time."""
        self.wait_ready()
        waiting = iter(requests)
        for engine in self._engines:
            self._refill(engine, waiting)
        while any(engine.in_flight for engine in self._engines):
            ready = wait([engine.connection for engine in self._engines if engine.in_flight])
            for engine in [engine for engine in self._engines if engine.connection in ready]:
                completions = engine.receive()
                self._refill(engine, waiting)
                yield from completions

    @staticmethod
    def _refill(engine: EngineProcess, waiting: Iterator[Request]) -> None:
        requests = list(itertools.islice(waiting, engine.max_in_flight - engine.in_flight))
        if requests:
            engine.send(requests)

    def close(self) -> None:
        """End the processes."""
        for engine in self._engines:
            engine.close()
        self._engines = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
