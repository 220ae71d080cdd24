"""Filters that must see the whole set, on a few bytes a row that a first pass found.

Each takes the rows that are left and says which of them go, and each looks only at what those before it leave. The
first in ``WHOLE_SET_FILTERS`` that drops a row gives the reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_ssd.config.dataset import FilterConfig
from megatron_ssd.dataset.filters import FILTERS
from megatron_ssd.schema import Sample

# What the first pass keeps of a row: the reason that its own filters give, as a place in REASONS; characters of the
# response; the two halves of a digest (see ``response_digest``); the score of the proxy model, NaN where there is none.
FACTS = np.dtype(
    [("reason", "u1"), ("characters", "<u4"), ("digest_high", "<u8"), ("digest_low", "<u8"), ("score", "<f4")]
)

Facts = NDArray[np.void]  # [num_rows] of FACTS
Rows = NDArray[np.int64]  # numbers of rows, ascending


class WholeSetFilter(NamedTuple):
    """A row of the table: the reason's name, which of the given rows go, and whether the configuration asks for it."""

    reason: str
    drops: Callable[[Facts, FilterConfig], NDArray[np.bool_]]
    is_on: Callable[[FilterConfig], bool]


def shortest(lengths: NDArray[np.integer[Any]], fraction: float) -> NDArray[np.bool_]:
    """Which rows are among the shortest ``fraction``, [num_rows]; the earlier of two equals goes first.

    Args:
        lengths: of each row, [num_rows].
        fraction: of the rows, rounded down to whole ones.
    """
    chosen = np.zeros(len(lengths), dtype=np.bool_)
    chosen[np.argsort(lengths, kind="stable")[: int(len(lengths) * fraction)]] = True
    return chosen


def repeats(high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which rows have the digest of an earlier row, [num_rows]."""
    order = np.lexsort((low, high))  # stable: equal digests stay in the order of the rows
    chosen = np.zeros(len(order), dtype=np.bool_)
    chosen[order[1:]] = (np.diff(high[order]) == 0) & (np.diff(low[order]) == 0)
    return chosen


def outside_band(scores: NDArray[np.floating[Any]], band: tuple[float, float]) -> NDArray[np.bool_]:
    """Which rows lie below or above two quantiles of the scores, [num_rows]; the earlier of two equals ranks lower.

    Args:
        scores: of each row, [num_rows]; NaN where there is none, which is never outside and counts for nothing.
        band: shares of the scores, rounded to whole rows.
    """
    order = np.argsort(scores, kind="stable")[: int(np.count_nonzero(~np.isnan(scores)))]  # NaN sorts last
    low, high = (round(share * len(order)) for share in band)
    chosen = np.zeros(len(scores), dtype=np.bool_)
    chosen[order[:low]] = chosen[order[high:]] = True
    return chosen


WHOLE_SET_FILTERS = (
    WholeSetFilter(
        "duplicate",
        lambda facts, config: repeats(facts["digest_high"], facts["digest_low"]),
        lambda config: config.drop_duplicates,
    ),
    WholeSetFilter(
        "shortest",
        lambda facts, config: shortest(facts["characters"], config.drop_shortest_fraction),
        lambda config: config.drop_shortest_fraction > 0,
    ),
    WholeSetFilter(
        "no_proxy_score",
        lambda facts, config: np.isnan(facts["score"]),
        lambda config: config.proxy_band is not None,
    ),
    WholeSetFilter(
        "outside_proxy_band",
        lambda facts, config: outside_band(facts["score"], config.proxy_band or (0.0, 1.0)),
        lambda config: config.proxy_band is not None,
    ),
)

# Place 0 is of rows that stay.
REASONS: tuple[str | None, ...] = (None, *(row.reason for row in (*FILTERS, *WHOLE_SET_FILTERS)))


def needs_whole_set(config: FilterConfig) -> bool:
    """Whether a filter is on that must see the whole set."""
    return any(row.is_on(config) for row in WHOLE_SET_FILTERS)


def settle(facts: Facts, config: FilterConfig) -> NDArray[np.uint8]:
    """Why each row goes, as places in ``REASONS``, [num_rows]."""
    reasons: NDArray[np.uint8] = facts["reason"].copy()
    for row in WHOLE_SET_FILTERS:
        if row.is_on(config):
            left = np.flatnonzero(reasons == 0)
            reasons[left[row.drops(facts[left], config)]] = REASONS.index(row.reason)
    return reasons


def response_digest(sample: Sample) -> tuple[int, int]:
    """What two responses to one problem share exactly where they differ in white space alone."""
    text = "\0".join((sample.problem_id, " ".join(sample.response.split())))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")
