"""Engines side by side, fed from one stream of requests.

Each engine holds a bounded number of requests and gets another when one finishes, so a slow engine or a long response
holds nobody up, and a kill loses only what is in flight. An engine that dies while it works is started again, a bounded
number of times, and what it held is sent again: every request is answered once, and its seed decides its tokens as
before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from multiprocessing.connection import wait

from megatron_ssd.generation.backlog import Backlog
from megatron_ssd.generation.engine import Completion, EngineSpec, Job, Request, Result, Score, ScoreRequest
from megatron_ssd.generation.engine_process import EngineDeathError, EngineProcess

log = logging.getLogger(__name__)


class EnginePool(AbstractContextManager["EnginePool"]):
    """A ``Sampler`` over processes. A context manager; leaving it ends the processes.

    The processes start at once and load side by side with whatever the caller does before ``sample``. Use it in the
    thread that made it (see ``EngineProcess``).

    Args:
        spec: how to start an engine.
        size: how many.
        max_in_flight: requests that one engine holds, a little more than it runs at a time.
        max_restarts: times that a dead engine is started again, over all engines and the pool's life.

    Raises:
        UserError: on the first use, where an engine could not start; later, where one died and no restart is left, or
            did not start again.
    """

    def __init__(self, spec: EngineSpec, *, size: int, max_in_flight: int, max_restarts: int) -> None:
        self._spec = spec
        self._max_in_flight = max_in_flight
        self._max_restarts = max_restarts
        self._restarts = 0
        self._engines: list[EngineProcess] = []
        try:
            for index in range(size):
                self._engines.append(self._start(index))
        except BaseException:
            self.close()
            raise

    def wait_ready(self) -> None:
        """Wait until every engine has loaded."""
        for engine in self._engines:
            engine.wait_ready()

    def sample(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Completions in the order in which they finish. One call at a time."""
        for result in self._run(requests):
            assert isinstance(result, Completion)
            yield result

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Score]:
        """Scores in the order in which they finish. One call at a time."""
        for result in self._run(requests):
            assert isinstance(result, Score)
            yield result

    def _run(self, requests: Iterable[Job]) -> Iterator[Result]:
        self.wait_ready()
        backlog = Backlog(requests)
        self._feed(backlog)
        while backlog.num_returned or any(engine.in_flight for engine in self._engines):
            busy = [engine for engine in self._engines if engine.in_flight or not engine.is_ready]
            speaking = wait([engine.connection for engine in busy])
            for engine in [engine for engine in busy if engine.connection in speaking]:
                results = self._receive(engine, backlog)
                self._feed(backlog)
                yield from results

    def _feed(self, backlog: Backlog[Job]) -> None:
        for engine in self._engines:
            requests = backlog.take(engine.room) if engine.is_ready else []
            if requests:
                engine.send(requests)

    def _receive(self, engine: EngineProcess, backlog: Backlog[Job]) -> list[Result]:
        """What ``engine`` has to say. Where it says that it has loaded, or is dead, that is no result."""
        if not engine.is_ready:
            engine.wait_ready()  # whoever dies while loading would do so again
            return []
        try:
            return engine.receive()
        except EngineDeathError as death:
            self._replace(engine, death, backlog)
            return []

    def _replace(self, engine: EngineProcess, death: EngineDeathError, backlog: Backlog[Job]) -> None:
        lost = engine.in_flight
        backlog.put_back(lost)
        if self._restarts == self._max_restarts:
            raise self._exhausted(death, [request for request in lost if self._always_there(request, backlog)])
        self._restarts += 1
        log.warning(
            "%s %s; it is started again (%d of engine.max_restarts = %d), the %d requests that it held are sent again, "
            "and %s",
            death.what, death.rule, self._restarts, self._max_restarts, len(lost), death.fix.split("; ")[-1],
        )  # fmt: skip
        engine.close()
        self._engines[engine.index] = self._start(engine.index)

    def _always_there(self, request: Job, backlog: Backlog[Job]) -> bool:
        return backlog.times_returned(request.key) > self._max_restarts

    def _exhausted(self, death: EngineDeathError, suspects: list[Job]) -> EngineDeathError:
        """``death`` as the end of the run; ``suspects`` were in flight whenever an engine died."""
        if not self._restarts:
            return death
        rule = f"{death.rule} after {self._restarts} restarts, and engine.max_restarts = {self._max_restarts}"
        if suspects:
            rule += f"; at each death {len(suspects)} requests were in flight, {suspects[0].key} the first of them"
        return EngineDeathError(death.what, rule=rule, fix=death.fix)

    def _start(self, index: int) -> EngineProcess:
        return EngineProcess(self._spec, index=index, max_in_flight=self._max_in_flight)

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for engine in self._engines:
            engine.close()
        self._engines = []
