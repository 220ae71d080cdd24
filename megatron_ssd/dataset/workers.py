"""Tasks spread over worker processes, which report rows as they go.

Workers are fresh interpreters, not forks: a fork of a process with threads (progress bar, tokenizer) may hang, and a
fresh one holds no more than what it imports. A worker dies with its parent, and writes only what its task names: what
is left of a killed run is finished tasks and tasks to do again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from megatron_ssd.errors import UserError
from megatron_ssd.process import ChildDeathError, ChildProcess, connection_to_parent

T = TypeVar("T")

CountRows = Callable[[int], object]
Work = Callable[[T, CountRows], object]  # does a task; says now and then how many rows it has done since
_DONE = "done"
_MODULE = "megatron_ssd.dataset.workers"  # this one
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
        workers = [stack.enter_context(contextlib.closing(ChildProcess(_MODULE))) for _ in range(count)]
        busy: dict[Any, tuple[ChildProcess, T]] = {}
        for worker, task in zip(workers, itertools.islice(waiting, count), strict=True):
            worker.send(work)
            worker.send(task)
            busy[worker.connection] = worker, task
        while busy:
            for connection in wait(list(busy)):
                worker, task = busy[connection]
                said = _receive(worker)
                if said != _DONE:
                    count_rows(said)
                    continue
                del busy[connection]
                for following in itertools.islice(waiting, 1):
                    worker.send(following)
                    busy[connection] = worker, following
                yield task


def _receive(worker: ChildProcess) -> Any:
    """The worker's next message: a number of rows, or that its task is done. Raises what its task raised."""
    try:
        return worker.receive()
    except ChildDeathError as death:
        raise UserError(
            f"worker process with status {death.status}",
            rule="died, and said why above if it could (status -9: killed, perhaps because memory ran out)",
            fix="finished shards are kept: run the same command again, with a lower preprocess.num_workers if it was "
            "memory",
        ) from None


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
    serve(connection_to_parent())
