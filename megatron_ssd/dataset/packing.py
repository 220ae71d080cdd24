"""Which samples share a row, as pure functions of sample lengths.

Invariants, for every epoch:
- every sample is in exactly one row, and in it exactly once;
- no sample is split, and no row holds more than ``row_length`` positions;
- the plan depends on (lengths, row length, mode, seed, epoch) alone, and its order differs from epoch to epoch.

``greedy`` is online best fit: samples come in shuffled order, and each goes into the fullest row that still has room
for it, or opens a new one. Sorting by length first would waste a little less and would put samples of like length
together in every epoch; here the company that a sample keeps is as random as the shuffle.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

PackingMode = Literal["none", "greedy"]

_SEED_DOMAIN = 0x5AC1  # keeps this stream apart from others that are made of the same run seed


@dataclass(frozen=True)
class PackingPlan:
    """Rows of one epoch: row ``i`` holds ``samples[starts[i]:starts[i + 1]]``, in that order.

    Shapes: ``samples`` is [num_samples], ``starts`` is [num_rows + 1]; both int64.
    """

    samples: NDArray[np.int64]
    starts: NDArray[np.int64]

    @property
    def num_rows(self) -> int:
        """How many rows the epoch has."""
        return len(self.starts) - 1

    def row(self, index: int) -> NDArray[np.int64]:
        """Sample numbers in row ``index``."""
        return self.samples[self.starts[index] : self.starts[index + 1]]


def plan_epoch(
    lengths: NDArray[np.int64], *, row_length: int, packing: PackingMode, seed: int, epoch: int
) -> PackingPlan:
    """Assign every sample to a row.

    Args:
        lengths: positions of each sample, [num_samples], each between 1 and ``row_length``.
        row_length: positions in a row.
        packing: ``none`` for a row of its own for each sample, ``greedy`` for best fit.
        seed: of the run.
        epoch: 0 for the first pass over the data.
    """
    assert len(lengths) == 0 or (lengths.min() >= 1 and lengths.max() <= row_length), "lengths were checked before"
    generator = np.random.default_rng([_SEED_DOMAIN, seed, epoch])
    order = generator.permutation(len(lengths))
    if packing == "none":
        return PackingPlan(samples=order, starts=np.arange(len(order) + 1))
    rows = _best_fit(order, lengths, row_length)
    # Rows that opened early are the fullest; without this shuffle the last steps of an epoch would see sparse ones.
    rows = [rows[i] for i in generator.permutation(len(rows))]
    return PackingPlan(
        samples=np.array([sample for row in rows for sample in row], dtype=np.int64),
        starts=np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64),
    )


def _best_fit(order: NDArray[np.int64], lengths: NDArray[np.int64], row_length: int) -> list[list[int]]:
    """Online best fit. O(n log n) but for moving the entries of one sorted list of open rows."""
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (free positions, row), sorted; full rows leave the list
    for sample, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        place = bisect.bisect_left(open_rows, (length, -1))
        if place < len(open_rows):
            free, row = open_rows.pop(place)
        else:
            free, row = row_length, len(rows)
            rows.append([])
        rows[row].append(sample)
        if free > length:
            bisect.insort(open_rows, (free - length, row))
    return rows
