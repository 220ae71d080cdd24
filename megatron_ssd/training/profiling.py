"""Profiles chosen iterations of training with torch.profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Name what runs while entered, in traces of torch.profiler and, on a GPU, as an NVTX range for Nsight Systems."""
    with record_function(name), ExitStack() as stack:
        if torch.cuda.is_available():
            stack.enter_context(torch.cuda.nvtx.range(name))
        yield


@contextmanager
def profiled(steps: tuple[int, int] | None, folder: Path, *, done: int) -> Iterator[Callable[[int], None]]:
    """Write a trace of the iterations from ``steps[0]`` to ``steps[1]``: ``folder/trace_FIRST_LAST.json.gz``.

    Yields a function that is called with the number of each finished iteration. A run that ends before the last of
    them writes a trace of what it did; one that resumes after the first of them writes none.

    Args:
        steps: None for no profile, as on all ranks but one.
        done: number of iterations that are finished already.
    """
    if steps is None or done >= steps[0]:
        yield lambda iteration: None
        return
    first, last = steps
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    running: list[profile] = []

    def stop() -> None:
        while running:
            profiler = running.pop()
            profiler.stop()
            folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(folder / f"trace_{first}_{last}.json.gz"))

    def finished(iteration: int) -> None:
        if iteration == last:
            stop()
        if iteration == first - 1:
            running.append(profile(activities=activities))
            running[0].start()

    try:
        finished(done)
        yield finished
    finally:
        stop()
