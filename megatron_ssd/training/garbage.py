"""Runs Python's garbage collector at the same iterations on all ranks.

A collection takes up to a second in a large process. Ranks wait for each other in every layer, so collections at
different times delay all ranks each time, and collections at the same time delay them once.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def collected_together(interval: int | None) -> Iterator[Callable[[int], None]]:
    """While entered, garbage is collected only by the function that this yields.

    The function takes the number of an iteration, and collects after each multiple of ``interval``. If ``interval`` is
    None, it does nothing and Python collects as usual.
    """
    if interval is None:
        yield lambda iteration: None
        return

    def collect(iteration: int) -> None:
        if iteration % interval == 0:
            gc.collect()

    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield collect
    finally:
        if was_enabled:
            gc.enable()
