"""Runs tasks in worker processes that report their progress.

Workers are new interpreters, not forks: a fork of a process with threads (progress bar, tokenizer) may hang, and a new
interpreter uses no more memory than its imports. A worker dies with its parent and writes only what its task names, so
a killed run leaves finished tasks and tasks to repeat.
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

CountSamples = Callable[[int], object]
Work = Callable[
    [T, CountSamples], object
]  # does a task; reports now and then the number of samples since the last report
_DONE = "done"
_EVERY = 64  # samples between two reports to the progress bar


def counted(samples: Iterable[T], count_samples: CountSamples) -> Iterator[T]:
    """``samples``, with a call of ``count_samples`` now and then."""
    number = 0
    for number, sample in enumerate(samples, start=1):
        if number % _EVERY == 0:
            count_samples(_EVERY)
        yield sample
    count_samples(number % _EVERY)


def usable_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def run_tasks(work: Work[T], tasks: Sequence[T], *, num_workers: int, count_samples: CountSamples) -> Iterator[T]:
    """Run every task, and yield each when it is finished, in no particular order.

    Args:
        work: sent to the workers by pickle, as is each task.
        tasks: started in this order.
        num_workers: at most one process per task is started; with one worker, tasks run in this process.
        count_samples: called with the number of samples as they are done.

    Raises:
        UserError: a task raised it, or a worker died. The other workers are stopped.
        OSError: a task raised it, for example because the disk is full.
    """
    waiting, count = iter(tasks), min(num_workers, len(tasks))
    if count <= 1:
        for task in waiting:
            work(task, count_samples)
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
                message = worker.receive()
                if message != _DONE:
                    count_samples(message)
                    continue
                del busy[connection]
                for following in itertools.islice(waiting, 1):
                    worker.send(following)
                    busy[connection] = worker, following
                yield task


class _Worker:
    """The parent's end of a worker; a context manager that ends the worker.

    The kernel kills a worker when the thread that started it ends, so start it in the main thread.
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
        """Send the work, then one task after another."""
        try:
            self.connection.send(message)
        except ConnectionError:
            raise self._death() from None

    def receive(self) -> Any:
        """The next message of the worker: samples done, or ``_DONE``. Raises what its task raised."""
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionError):
            raise self._death() from None
        try:
            if isinstance(message, Exception):
                raise message
            return message
        finally:
            del message  # otherwise the error's traceback refers to this frame, and the frame to the error

    def _death(self) -> UserError:
        return UserError(
            f"worker process with status {self._process.wait()}",
            rule="died; see its message above, if any (status -9: killed, perhaps because memory ran out)",
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
    """The worker: receives the work, then tasks until the connection closes."""
    with contextlib.suppress(EOFError, ConnectionError):  # the parent has closed it
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
