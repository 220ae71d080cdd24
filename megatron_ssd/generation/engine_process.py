"""An engine in a process of its own: what the child runs, and the parent's end of the line.

The child is started with the environment that its engine wants, which has to be there before the engine's libraries
load; what those libraries change in their process stays there. It ends when the parent closes the line or dies.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
from multiprocessing.connection import Connection
from typing import Any

from megatron_ssd.errors import UserError
from megatron_ssd.generation.sampler import Completion, Engine, EngineSpec, Request
from megatron_ssd.process import die_with_parent, this_package


class EngineProcess:
    """The parent's end. Create it to start the child, then ``wait_ready`` before the first ``send``.

    A child asks the kernel to be killed with the thread that made it, so make it in the main thread.

    Args:
        spec: how to start the engine.
        index: number of this engine among its fellows.
        max_in_flight: requests that the child may hold.
    """

    def __init__(self, spec: EngineSpec, *, index: int, max_in_flight: int) -> None:
        self.max_in_flight = max_in_flight
        self.in_flight = 0
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
        self._call(self.connection.send, spec)

    def wait_ready(self) -> None:
        """Wait until the engine has loaded.

        Raises:
            UserError: it could not start, for the reason given.
        """
        complaint: dict[str, str] | None = self._call(self.connection.recv)
        if complaint is not None:
            raise UserError(**complaint)

    def send(self, requests: list[Request]) -> None:
        """Hand over requests."""
        self.in_flight += len(requests)
        self._call(self.connection.send, requests)

    def receive(self) -> list[Completion]:
        """What finished since; waits for at least one."""
        completions: list[Completion] = self._call(self.connection.recv)
        self.in_flight -= len(completions)
        return completions

    def close(self) -> None:
        """End the child. It holds nothing that is not lost already."""
        self.connection.close()
        self._process.kill()
        self._process.wait()
        self._output.close()

    def _call(self, function: Any, *arguments: Any) -> Any:
        """Use the line; where the child at its other end is gone, say what it said last."""
        try:
            return function(*arguments)
        except (EOFError, ConnectionError):
            raise self._death() from None

    def _death(self) -> UserError:
        status = self._process.wait()
        self._output.seek(0)
        output = self._output.read()
        with tempfile.NamedTemporaryFile(prefix="megatron-ssd-engine-", suffix=".log", delete=False) as log:
            log.write(output)
        lines = output.decode("utf-8", "replace").strip().splitlines()
        return UserError(
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
    arrived: queue.SimpleQueue[list[Request] | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, arrived), daemon=True).start()
    with contextlib.suppress(ConnectionError):  # the parent wants no more
        _decode(connection, engine, arrived)


def _read(connection: Connection, arrived: queue.SimpleQueue[list[Request] | None]) -> None:
    """Move messages into ``arrived``, and None after the last."""
    try:
        while True:
            arrived.put(connection.recv())
    except (EOFError, OSError):
        arrived.put(None)


def _decode(connection: Connection, engine: Engine, arrived: queue.SimpleQueue[list[Request] | None]) -> None:
    in_flight = 0
    while True:
        while in_flight == 0 or not arrived.empty():
            requests = arrived.get()
            if requests is None:
                return
            for request in requests:
                engine.add(request)
            in_flight += len(requests)
        completions = engine.step()
        if completions:
            in_flight -= len(completions)
            connection.send(completions)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
