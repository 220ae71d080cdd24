"""Processes of the sides of a comparison, which run alternately."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Cost(NamedTuple):
    """Seconds by the clock, and CPU seconds of all processes together."""

    seconds: float
    cpu_seconds: float


class Side:
    """The processes of one side. Each does its work once per line on its standard input.

    Args:
        module: the module to run; its ``--side NAME`` calls ``serve``.
        name: the side.
        arguments: further arguments.
        environments: one per process, added to the environment of this process.
    """

    def __init__(
        self, module: str, name: str, arguments: Sequence[str], environments: Sequence[Mapping[str, str]] = ({},)
    ) -> None:
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", module, "--side", name, *arguments],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if os.environ.get("VERBOSE") else subprocess.DEVNULL,
                text=True,
            )
            for environment in environments
        ]
        for process in self._processes:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                sys.exit(f"{name} did not start; VERBOSE=1 shows why")

    @property
    def pid(self) -> int:
        """The first process."""
        return self._processes[0].pid

    def run(self) -> Cost:
        """The cost of one run: the seconds of the slowest process."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [process.stdout.readline().split() for process in self._processes if process.stdout]
        costs = [Cost(float(seconds), float(cpu_seconds)) for seconds, cpu_seconds in answers]
        return Cost(max(cost.seconds for cost in costs), sum(cost.cpu_seconds for cost in costs))

    def stop(self) -> None:
        """Kill the processes."""
        for process in self._processes:
            process.kill()
            process.wait()


def alternate(sides: Mapping[str, Side], rounds: int) -> list[dict[str, Cost]]:
    """The cost of each side in each round, after one run of each to warm up. Stops the sides."""
    try:
        for side in sides.values():
            side.run()  # compiles and allocates
        return [{name: side.run() for name, side in sides.items()} for _ in range(rounds)]
    finally:
        for side in sides.values():
            side.stop()


def serve(prepare: Callable[[], AbstractContextManager[Callable[[], object]]]) -> None:
    """Answer each line of standard input with the cost of one call of the function that ``prepare`` makes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not be read as an answer
    with prepare() as run_once:
        print("ready", file=answers, flush=True)
        for _ in sys.stdin:
            started, cpu_before = time.perf_counter(), cpu_seconds_of_process()
            run_once()
            print(time.perf_counter() - started, cpu_seconds_of_process() - cpu_before, file=answers, flush=True)


def cpu_seconds_of_process() -> float:
    """CPU seconds of this process and of its children that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
