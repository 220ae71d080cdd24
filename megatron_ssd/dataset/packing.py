"""Which samples share a row, as pure functions of sample lengths.

Invariants, for every epoch:
- every sample is in exactly one row, and in it exactly once;
- no sample is split, and no row holds more than ``seq_length`` positions;
- the plan depends on (lengths, row length, mode, seed, epoch) alone, and its order differs from epoch to epoch.

Both packing modes are best fit: samples come one after the other, and each goes into the fullest row that still has
room for it, or opens a new one. They differ in the order. ``greedy`` takes samples as shuffled, so that the company a
sample keeps is as random as the shuffle. ``best_fit`` takes long samples first and short ones last, which fill what is
left; lengths are blurred by a fifth before sorting, so that rows differ from epoch to epoch all the same.
"""

from __future__ import annotations

import bisect
import heapq
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

PackingMode = Literal["none", "greedy", "best_fit"]

_SEED_DOMAIN = 0x5AC1  # keeps this stream apart from others that are made of the same run seed
_BLUR = 0.2  # of a length, before best_fit sorts: costs less than 0.1 % of efficiency on log-normal lengths


@dataclass(frozen=True)
class PackingPlan:
    """Rows of one epoch: row ``i`` holds ``samples[starts[i]:starts[i + 1]]``, in that order.

    Shapes: ``samples`` is [num_samples], ``starts`` is [num_sequences + 1]; both int64.
    """

    samples: NDArray[np.int64]
    starts: NDArray[np.int64]

    @property
    def num_sequences(self) -> int:
        """How many rows the epoch has."""
        return len(self.starts) - 1

    def sequence(self, index: int) -> NDArray[np.int64]:
        """Sample numbers in row ``index``."""
        return self.samples[self.starts[index] : self.starts[index + 1]]


def plan_epoch(
    lengths: NDArray[np.int64], *, seq_length: int, packing: PackingMode, seed: int, epoch: int
) -> PackingPlan:
    """Assign every sample to a row.

    Args:
        lengths: positions of each sample, [num_samples], each between 1 and ``seq_length``.
        seq_length: positions in a row.
        packing: ``none`` for a row of its own for each sample, ``greedy`` and ``best_fit`` as the module says.
        seed: of the run.
        epoch: 0 for the first pass over the data.
    """
    assert len(lengths) == 0 or (lengths.min() >= 1 and lengths.max() <= seq_length), "lengths were checked before"
    generator = np.random.default_rng([_SEED_DOMAIN, seed, epoch])
    order = generator.permutation(len(lengths))
    if packing == "none":
        return PackingPlan(samples=order, starts=np.arange(len(order) + 1))
    if packing == "best_fit":
        order = np.argsort(-lengths * generator.uniform(1, 1 + _BLUR, len(lengths)), kind="stable")
    rows = _best_fit(order, lengths, seq_length)
    # Rows that opened early are the fullest; without this shuffle the last steps of an epoch would see sparse ones.
    rows = [rows[i] for i in generator.permutation(len(rows))]
    return PackingPlan(
        samples=np.array([sample for row in rows for sample in row], dtype=np.int64),
        starts=np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64),
    )


def _best_fit(order: NDArray[np.int64], lengths: NDArray[np.int64], seq_length: int) -> list[list[int]]:
    """Samples of each row. Of the rows with the least room that is enough, the one that opened first is taken."""
    rows: list[list[int]] = []
    open_rows: dict[int, list[int]] = {}  # free positions -> heap of rows
    rooms: list[int] = []  # its keys, sorted
    for sample, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        place = bisect.bisect_left(rooms, length)
        if place < len(rooms):
            room = rooms[place]
            row = heapq.heappop(open_rows[room])
            if not open_rows[room]:
                del open_rows[room], rooms[place]
        else:
            room, row = seq_length, len(rows)
            rows.append([])
        rows[row].append(sample)
        left = room - length
        if left and left not in open_rows:
            open_rows[left] = []
            bisect.insort(rooms, left)
        if left:
            heapq.heappush(open_rows[left], row)
    return rows


@dataclass(frozen=True)
class PackingReport:
    """What a packing mode makes of a data set, in its first epoch.

    ``efficiency`` is the share of row positions that samples fill; ``padded_efficiency`` is that share where every
    sample has a row of its own. ``overlong`` samples do not fit in a row and are not counted elsewhere.
    """

    packing: PackingMode
    seq_length: int
    samples: int
    overlong: int
    positions: int
    rows: int
    efficiency: float
    padded_efficiency: float

    def __str__(self) -> str:
        return (
            f"packing {self.packing}: {self.samples} samples in {self.rows} rows of {self.seq_length}, "
            f"{self.efficiency:.1%} filled; one sample a row would waste {1 - self.padded_efficiency:.1%}; "
            f"{self.overlong} over long"
        )


def packing_report(
    lengths: NDArray[np.int64], *, seq_length: int, packing: PackingMode, seed: int = 0, multiple: int = 1
) -> PackingReport:
    """Plan the first epoch and say how full its rows are.

    Args:
        lengths: positions of each sample, [num_samples], over-long ones included.
        multiple: what the place of a sample in a row is rounded up to; what that wastes counts as empty.
    """
    fitting = lengths[lengths <= seq_length]
    places = round_up(fitting, multiple)
    rows = plan_epoch(places, seq_length=seq_length, packing=packing, seed=seed, epoch=0).num_sequences
    positions = int(fitting.sum())
    return PackingReport(
        packing=packing,
        seq_length=seq_length,
        samples=len(fitting),
        overlong=len(lengths) - len(fitting),
        positions=positions,
        rows=rows,
        efficiency=positions / max(rows * seq_length, 1),
        padded_efficiency=positions / max(len(fitting) * seq_length, 1),
    )


def round_up(lengths: NDArray[np.int64], multiple: int) -> NDArray[np.int64]:
    """Each length raised to the next multiple of ``multiple``."""
    return -(-lengths // multiple) * multiple
