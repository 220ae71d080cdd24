"""Runs tasks in worker processes that report their progress.

Workers are new interpreters, not forks: a fork of a process with threads (progress bar, tokenizer) may hang, and a new
interpreter uses no more memory than its imports. A worker dies with its parent and writes only the files of its task,
so after a kill each task is either finished or can be repeated.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from megatron_ssd.errors import UserError
from megatron_ssd.process import ChildDeathError, ChildProcess, connection_to_parent

T = TypeVar("T")

CountSamples = Callable[[int], object]
Work = Callable[[T, CountSamples], object]  # does a task, and reports the number of samples from time to time
_DONE = "done"
_MODULE = "megatron_ssd.dataset.workers"  # this module
_EVERY = 64  # samples between two reports to the progress bar


def counted(samples: Iterable[T], count_samples: CountSamples) -> Iterator[T]:
    """``samples``, with a call of ``count_samples`` from time to time."""
    number = 0
    for number, sample in enumerate(samples, start=1):
        if number % _EVERY == 0:
            count_samples(_EVERY)
        yield sample
    count_samples(number % _EVERY)


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
        workers = [stack.enter_context(contextlib.closing(ChildProcess(_MODULE))) for _ in range(count)]
        busy: dict[Any, tuple[ChildProcess, T]] = {}
        for worker, task in zip(workers, itertools.islice(waiting, count), strict=True):
            worker.send(work)
            worker.send(task)
            busy[worker.connection] = worker, task
        while busy:
            for connection in wait(list(busy)):
                worker, task = busy[connection]
                message = _receive(worker)
                if message != _DONE:
                    count_samples(message)
                    continue
                del busy[connection]
                for following in itertools.islice(waiting, 1):
                    worker.send(following)
                    busy[connection] = worker, following
                yield task


def _receive(worker: ChildProcess) -> Any:
    """The worker's next message: a number of samples, or that its task is done. Raises what its task raised."""
    try:
        return worker.receive()
    except ChildDeathError as death:
        raise UserError(
            f"worker process with status {death.status}",
            rule="died; see its message above, if any (status -9: killed, perhaps because memory ran out)",
            fix="finished shards are kept: run the same command again, with a lower preprocess.num_workers if it was "
            "memory",
        ) from None


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
    serve(connection_to_parent())
