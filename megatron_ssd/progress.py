"""Progress bars with rate and time left, on a terminal and in a log file alike."""

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
    """A tqdm bar on standard error. Where that is no terminal, a line every ten seconds in place of a moving bar.

    Args:
        iterable: what to walk; None for a bar moved by ``update``.
        desc: what is going on, for example ``sampling``.
        unit: what is counted, in the singular.
        total: how many there are; taken from ``iterable`` where it has a length.
        initial: how many were already done before a resume.
    """
    terminal = sys.stderr.isatty()
    style: dict[str, Any] = {} if terminal else {"mininterval": _SECONDS_BETWEEN_LOG_LINES, "ascii": True, "ncols": 100}
    if total is None and not hasattr(iterable, "__len__"):
        style["bar_format"] = f"{{desc}}: {{n_fmt}} {unit}s [{{elapsed}}, {{rate_fmt}}{{postfix}}]"
    bar = tqdm(iterable, desc=desc, unit=f" {unit}", total=total, initial=initial, dynamic_ncols=terminal, **style)
    return cast("tqdm[T]", bar)
