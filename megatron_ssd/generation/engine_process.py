"""An engine in a process of its own: what the child runs, and the parent's end of the line.

The child is started with the environment that its engine wants, which has to be there before the engine's libraries
load; what those libraries change in their process stays there. It ends when the parent closes the line or dies.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from multiprocessing.connection import Connection
from typing import Any

from megatron_ssd.errors import UserError
from megatron_ssd.generation.engine import Engine, EngineSpec, Job, Key, Result
from megatron_ssd.process import die_with_parent, this_package


class EngineDeathError(UserError):
    """An engine process ended by itself; the message has its status and the last line that it printed."""


class EngineProcess:
    """The parent's end. Create it to start the child, then ``wait_ready`` before the first ``send``.

    A child asks the kernel to be killed with the thread that made it, so make it in the main thread.

    Args:
        spec: how to start the engine.
        index: number of this engine among its fellows.
        max_in_flight: requests that the child may hold.
    """

    def __init__(self, spec: EngineSpec, *, index: int, max_in_flight: int) -> None:
        self.index = index
        self.max_in_flight = max_in_flight
        self.is_ready = False
        self._requests: dict[Key, Job] = {}
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "megatron_ssd.generation.engine_process", str(theirs.fileno())],
                env={**os.environ, **this_package(), **spec.environment(index)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
                process_group=0,  # Ctrl-C is the parent's to handle
            )
        self.connection = Connection(ours.detach())
        self._send(spec)

    @property
    def in_flight(self) -> tuple[Job, ...]:
        """Requests that the child holds."""
        return tuple(self._requests.values())

    @property
    def room(self) -> int:
        """How many more it may hold."""
        return self.max_in_flight - len(self._requests)

    def wait_ready(self) -> None:
        """Wait until the engine has loaded; returns at once where it has.

        Raises:
            UserError: it could not start, for the reason given.
            EngineDeathError: it ended without one.
        """
        if self.is_ready:
            return
        complaint: dict[str, str] | None = self._receive()
        if complaint is not None:
            raise UserError(**complaint)
        self.is_ready = True

    def send(self, requests: list[Job]) -> None:
        """Hand over requests. That the child is gone shows when it is asked for results."""
        self._requests.update((request.key, request) for request in requests)
        self._send(requests)

    def receive(self) -> list[Result]:
        """What finished since; waits for at least one.

        Raises:
            EngineDeathError: the child is gone. All that it finished was received before; the rest is ``in_flight``.
        """
        results: list[Result] = self._receive()
        for result in results:
            del self._requests[result.key]
        return results

    def close(self) -> None:
        """End the child, and whatever it started. It holds nothing that is not lost already."""
        self.connection.close()
        with contextlib.suppress(ProcessLookupError):  # nothing is left of its group
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._output.close()

    def _send(self, message: Any) -> None:
        # A child that dies leaves in the line what it wrote before; reading comes to that, and then to the end.
        with contextlib.suppress(ConnectionError):
            self.connection.send(message)

    def _receive(self) -> Any:
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            raise self._death() from None

    def _death(self) -> EngineDeathError:
        status = self._process.wait()
        self._output.seek(0)
        output = self._output.read()
        with tempfile.NamedTemporaryFile(prefix="megatron-ssd-engine-", suffix=".log", delete=False) as log:
            log.write(output)
        lines = output.decode("utf-8", "replace").strip().splitlines()
        return EngineDeathError(
            f"engine process with status {status}",
            rule=f"died ({lines[-1].strip() if lines else 'without a word'})",
            fix="finished samples are kept: run the same command again, with a lower engine.max_num_seqs if memory ran "
            f"out; all that the process printed is in {log.name}",
        )


def serve(connection: Connection) -> None:
    """The child: start the engine that the first message describes, then decode until the line closes."""
    spec: EngineSpec = connection.recv()
    gc.disable()  # what loads, stays; looking through it again and again takes a third of the start
    try:
        engine = spec.start()
    except UserError as error:
        connection.send({"what": error.what, "rule": error.rule, "fix": error.fix})
        return
    gc.freeze()
    gc.enable()
    connection.send(None)
    # Read in a thread, so that the two ends never wait for each other with a full line between them.
    arrived: queue.SimpleQueue[list[Job] | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, arrived), daemon=True).start()
    with contextlib.suppress(ConnectionError):  # the parent wants no more
        _decode(connection, engine, arrived)


def _read(connection: Connection, arrived: queue.SimpleQueue[list[Job] | None]) -> None:
    """Move messages into ``arrived``, and None after the last."""
    try:
        while True:
            arrived.put(connection.recv())
    except (EOFError, OSError):
        arrived.put(None)


def _decode(connection: Connection, engine: Engine, arrived: queue.SimpleQueue[list[Job] | None]) -> None:
    in_flight = 0
    while True:
        while in_flight == 0 or not arrived.empty():
            requests = arrived.get()
            if requests is None:
                return
            for request in requests:
                engine.add(request)
            in_flight += len(requests)
        results = engine.step()
        if results:
            in_flight -= len(results)
            connection.send(results)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
