"""Progress bars for terminals or log files."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar, cast

from tqdm import tqdm

T = TypeVar("T")

_SECONDS_BETWEEN_LOG_LINES = 10.0


def progress(
    iterable: Iterable[T] | None = None, *, desc: str, unit: str, total: int | None = None, initial: int = 0
) -> tqdm[T]:
    """A tqdm bar on standard error; a line every ten seconds if that is not a terminal.

    Args:
        iterable: what to iterate over; None for a bar that ``update`` advances.
        desc: the current work, for example ``sampling``.
        unit: what is counted, in the singular.
        total: how many there are; by default the length of ``iterable``, if it has one.
        initial: how many were done before a resume.
    """
    terminal = sys.stderr.isatty()
    style: dict[str, Any] = {} if terminal else {"mininterval": _SECONDS_BETWEEN_LOG_LINES, "ascii": True, "ncols": 100}
    if total is None and not hasattr(iterable, "__len__"):
        style["bar_format"] = f"{{desc}}: {{n_fmt}} {unit}s [{{elapsed}}, {{rate_fmt}}{{postfix}}]"
    bar = tqdm(iterable, desc=desc, unit=f" {unit}", total=total, initial=initial, dynamic_ncols=terminal, **style)
    return cast("tqdm[T]", bar)
