"""Runs engines in processes of their own, fed from one stream of requests.

Each engine holds a bounded number of requests and gets another one when one finishes. So a slow engine or a long
response delays no other, and a kill loses only what is in flight. An engine that dies at work is restarted, a bounded
number of times, and its requests are sent again: every request is answered once, and its seed decides its tokens as
before.

Each engine has a process because its environment must be set before its libraries load, and because these libraries
change global state. The processes run this module.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import queue
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from megatron_ssd.errors import UserError
from megatron_ssd.generation.engine import (
    AnyRequest,
    Completion,
    Engine,
    EngineSpec,
    Request,
    RequestQueue,
    Result,
    ScoreRequest,
)
from megatron_ssd.process import ChildDeathError, ChildProcess, connection_to_parent

log = logging.getLogger(__name__)

_EXCEPTION = re.compile(r"[\w.]*(Error|Exception)\b")  # as the last line of a traceback begins


class EngineDeathError(UserError):
    """An engine process ended by itself; the message has its status and the first cause."""


class EnginePool:
    """A ``Sampler`` on processes. ``close`` ends them.

    The processes start at once and load while the caller does other work before ``sample``. Use the pool in the thread
    that made it (see ``ChildProcess``).

    Args:
        spec: how to start an engine.
        size: number of engines.
        max_in_flight: requests that one engine holds, a few more than it runs at a time.
        max_restarts: how often a dead engine is restarted, over all engines and the pool's life.

    Raises:
        UserError: on first use, if an engine could not start; later, if one died and no restart is left, or if its
            restart failed.
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

    def sample(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Completion]]:
        """Each request with its completion, as they finish. One call at a time."""
        return self._run(requests)

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[tuple[ScoreRequest, float]]:
        """Each request with its score, as they finish. One call at a time."""
        return self._run(requests)

    def _run(self, requests: Iterable[AnyRequest]) -> Iterator[tuple[Any, Any]]:
        self.wait_ready()
        waiting = RequestQueue(requests)
        self._feed(waiting)
        while waiting.num_returned or any(engine.in_flight for engine in self._engines):
            busy = {engine.connection: engine for engine in self._engines if engine.in_flight or not engine.is_ready}
            for connection in wait(list(busy)):
                results = self._receive(busy[connection], waiting)  # type: ignore[index]
                self._feed(waiting)
                yield from results

    def _feed(self, waiting: RequestQueue[AnyRequest]) -> None:
        for engine in self._engines:
            requests = waiting.take(engine.room) if engine.is_ready else []
            if requests:
                engine.send(requests)

    def _receive(self, engine: EngineProcess, waiting: RequestQueue[AnyRequest]) -> list[tuple[AnyRequest, Result]]:
        """What ``engine`` finished; nothing if its message is that it has loaded, or if it died."""
        if not engine.is_ready:
            engine.wait_ready()  # an engine that dies while loading would do so again
            return []
        try:
            return engine.receive()
        except EngineDeathError as death:
            self._restart(engine, death, waiting)
            return []

    def _restart(self, engine: EngineProcess, death: EngineDeathError, waiting: RequestQueue[AnyRequest]) -> None:
        lost = engine.in_flight
        waiting.put_back(lost)
        if self._restarts == self._max_restarts:
            suspects = [request for request in lost if waiting.times_returned(request) > self._max_restarts]
            raise self._exhausted(death, suspects)
        self._restarts += 1
        log.warning(
            "%s %s; it is restarted (%d of engine.max_restarts = %d), the %d requests that it held are sent again, and "
            "%s",
            death.what, death.rule, self._restarts, self._max_restarts, len(lost), death.fix.split("; ")[-1],
        )  # fmt: skip
        engine.close()
        self._engines[engine.index] = self._start(engine.index)

    def _exhausted(self, death: EngineDeathError, suspects: list[AnyRequest]) -> EngineDeathError:
        """``death`` as the end of the run; ``suspects`` were in flight at every death."""
        if not self._restarts:
            return death
        rule = f"{death.rule} after {self._restarts} restarts, and engine.max_restarts = {self._max_restarts}"
        if suspects:
            rule += f"; at each death {len(suspects)} requests were in flight, {suspects[0].key} the first of them"
        return EngineDeathError(death.what, rule=rule, fix=death.fix)

    def _start(self, index: int) -> EngineProcess:
        return EngineProcess(self._spec, index=index, max_in_flight=self._max_in_flight)

    def close(self) -> None:
        """End the processes. May be called again."""
        for engine in self._engines:
            engine.close()
        self._engines = []


class EngineProcess:
    """The parent's side of one engine. Constructing it starts the process; call ``wait_ready`` before ``send``.

    Args:
        spec: how to start the engine.
        index: number of this engine in its pool.
        max_in_flight: requests that the process may hold.
    """

    def __init__(self, spec: EngineSpec, *, index: int, max_in_flight: int) -> None:
        self.index = index
        self.max_in_flight = max_in_flight
        self.is_ready = False
        self._requests: dict[int, AnyRequest] = {}
        self._numbers = itertools.count()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._child = ChildProcess(
            "megatron_ssd.generation.engine_pool",
            environment=spec.environment(index),
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        self.pid, self.connection = self._child.pid, self._child.connection
        self._child.send(spec)

    @property
    def in_flight(self) -> tuple[AnyRequest, ...]:
        """Requests that the process holds."""
        return tuple(self._requests.values())

    @property
    def room(self) -> int:
        """How many more requests it may hold."""
        return self.max_in_flight - len(self._requests)

    def wait_ready(self) -> None:
        """Wait until the engine has loaded; returns at once if it has.

        Raises:
            UserError: it could not start, for the reason given.
            EngineDeathError: it ended without a reason.
        """
        if not self.is_ready:
            self._receive()
            self.is_ready = True

    def send(self, requests: list[AnyRequest]) -> None:
        """Hand over requests."""
        numbered = {next(self._numbers): request for request in requests}
        self._requests |= numbered
        self._child.send(numbered)

    def receive(self) -> list[tuple[AnyRequest, Result]]:
        """The requests that have finished since; waits for at least one.

        Raises:
            EngineDeathError: the process has ended. All that it finished was received before; the rest is
                ``in_flight``.
        """
        return [(self._requests.pop(number), result) for number, result in self._receive()]

    def close(self) -> None:
        """End the process and whatever it started."""
        self._child.close()
        self._output.close()

    def _receive(self) -> Any:
        try:
            return self._child.receive()
        except ChildDeathError as death:
            raise self._death(death.status) from None

    def _death(self, status: int) -> EngineDeathError:
        self._output.seek(0)
        output = self._output.read()
        with tempfile.NamedTemporaryFile(prefix="megatron-ssd-engine-", suffix=".log", delete=False) as file:
            file.write(output)
        return EngineDeathError(
            f"engine process with status {status}",
            rule=f"died ({first_cause(output.decode('utf-8', 'replace'))})",
            fix="finished samples are kept: run the same command again, with a lower engine.max_num_seqs if memory ran "
            f"out; all that the process printed is in {file.name}",
        )


def first_cause(output: str) -> str:
    """The line of ``output`` that says why a process died: its first exception, of which later ones are consequences.

    The last line, where a library may say something else at the end, counts only if there is no exception.
    """
    lines = output.strip().splitlines() or ["it printed nothing"]
    return next((line for line in lines if _EXCEPTION.match(line)), lines[-1]).strip()


def serve(connection: Connection) -> None:
    """The engine's process: start the engine that the first message describes, then run requests until the end."""
    spec: EngineSpec = connection.recv()
    gc.disable()  # what is loaded stays; collecting garbage in it takes a third of the start
    try:
        engine = spec.start()
    except UserError as error:
        connection.send(error)
        return
    gc.freeze()
    gc.enable()
    connection.send(None)
    # A thread reads, so that parent and child never both wait to write.
    arrived: queue.SimpleQueue[dict[int, AnyRequest] | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, arrived), daemon=True).start()
    with contextlib.suppress(ConnectionError):  # the parent has ended, or needs no more
        _decode(connection, engine, arrived)


def _read(connection: Connection, arrived: queue.SimpleQueue[dict[int, AnyRequest] | None]) -> None:
    """Move messages into ``arrived``, and None after the last."""
    try:
        while True:
            arrived.put(connection.recv())
    except (EOFError, OSError):
        arrived.put(None)


def _decode(connection: Connection, engine: Engine, arrived: queue.SimpleQueue[dict[int, AnyRequest] | None]) -> None:
    in_flight = 0
    while True:
        while in_flight == 0 or not arrived.empty():
            requests = arrived.get()
            if requests is None:
                return
            for number, request in requests.items():
                engine.add(number, request)
            in_flight += len(requests)
        results = engine.step()
        if results:
            in_flight -= len(results)
            connection.send(results)


if __name__ == "__main__":
    serve(connection_to_parent())
