"""Tasks spread over worker processes, which report rows as they go.

Workers are fresh interpreters, not forks: a fork of a process with threads (progress bar, tokenizer) may hang, and a
fresh one holds no more than what it imports. A worker dies with its parent, and writes only what its task names: what
is left of a killed run is finished tasks and tasks to do again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Self, TypeVar

from megatron_ssd.errors import UserError
from megatron_ssd.process import die_with_parent, this_package

T = TypeVar("T")

CountRows = Callable[[int], object]
Work = Callable[[T, CountRows], object]  # does a task; says now and then how many rows it has done since
_DONE = "done"
_EVERY = 64  # rows between two words to the progress bar


def counted(rows: Iterable[T], count_rows: CountRows) -> Iterator[T]:
    """``rows``, with a word to ``count_rows`` now and then."""
    number = 0
    for number, row in enumerate(rows, start=1):
        if number % _EVERY == 0:
            count_rows(_EVERY)
        yield row
    count_rows(number % _EVERY)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def run_tasks(work: Work[T], tasks: Sequence[T], *, num_workers: int, count_rows: CountRows) -> Iterator[T]:
    """Do every task, and yield each as it is finished, in no particular order.

    Args:
        work: goes to the workers by pickle, and so does each task.
        tasks: given out in this order.
        num_workers: processes; no more than there are tasks are started, and for one none is.
        count_rows: told of rows as they are done.

    Raises:
        UserError: a task raised it, or a worker died. The other workers are stopped where they are.
        OSError: a task raised it, for example because the disk is full.
    """
    waiting, count = iter(tasks), min(num_workers, len(tasks))
    if count <= 1:
        for task in waiting:
            work(task, count_rows)
            yield task
        return
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_Worker()) for _ in range(count)]
        busy: dict[Any, tuple[_Worker, T]] = {}
        for worker, task in zip(workers, itertools.islice(waiting, count), strict=True):
            worker.send(work)
            worker.send(task)
            busy[worker.connection] = worker, task
        while busy:
            for connection in wait(list(busy)):
                worker, task = busy[connection]
                said = worker.receive()
                if said != _DONE:
                    count_rows(said)
                    continue
                del busy[connection]
                for following in itertools.islice(waiting, 1):
                    worker.send(following)
                    busy[connection] = worker, following
                yield task


class _Worker:
    """The parent's end of a worker; leaving it as a context ends the worker.

    A worker asks the kernel to be killed with the thread that made it, so make it in the main thread.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "megatron_ssd.dataset.workers", str(theirs.fileno())],
                env={**os.environ, **this_package()},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                preexec_fn=die_with_parent,
                process_group=0,  # Ctrl-C is the parent's to handle
            )
        self.connection = Connection(ours.detach())

    def send(self, message: object) -> None:
        """Hand over the work, then one task after the other."""
        try:
            self.connection.send(message)
        except ConnectionError:
            raise self._death() from None

    def receive(self) -> Any:
        """What the worker says next: rows done, or that its task is. Raises what its task has raised."""
        try:
            said = self.connection.recv()
        except (EOFError, ConnectionError):
            raise self._death() from None
        try:
            if isinstance(said, Exception):
                raise said
            return said
        finally:
            del said  # else the error's traceback holds this frame and the frame the error

    def _death(self) -> UserError:
        return UserError(
            f"worker process with status {self._process.wait()}",
            rule="died, and said why above if it could (status -9: killed, perhaps because memory ran out)",
            fix="finished shards are kept: run the same command again, with a lower preprocess.num_workers if it was "
            "memory",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()
        self._process.kill()
        self._process.wait()


def serve(connection: Connection) -> None:
    """The worker: what to do comes first, then tasks until the line closes."""
    with contextlib.suppress(EOFError, ConnectionError):  # the parent wants no more
        work = connection.recv()
        while True:
            task = connection.recv()
            try:
                work(task, connection.send)
            except ConnectionError:
                raise
            except (UserError, OSError) as error:
                connection.send(error)
                return
            connection.send(_DONE)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
