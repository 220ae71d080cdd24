"""Plans which samples share a packed sequence, as pure functions of the sample lengths.

A plan is for an epoch (``plan_epoch``) or for the samples of one iteration (``plan_step``).

Invariants, for every epoch:
- every sample is in exactly one packed sequence, exactly once;
- no sample is split, and no packed sequence has more than ``seq_length`` tokens;
- the plan depends on (lengths, sequence length, mode, seed, epoch) alone, and its order differs between epochs.

Both packing modes are best fit: each sample goes into the fullest packed sequence that still has room for it, or opens
a new one. They differ in the order of the samples. ``greedy`` takes them as shuffled, so that the samples that share a
sequence are random. ``best_fit`` takes long samples first, and short samples fill what is left; lengths are perturbed
by up to a fifth before sorting, so that the packed sequences differ between epochs.
"""

from __future__ import annotations

import bisect
import heapq
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

PackingMode = Literal["none", "greedy", "best_fit"]

_SEED_DOMAIN = 0x5AC1  # separates this random stream from others of the same run seed
_PERTURBATION = 0.2  # of a length, before best_fit sorts; lowers efficiency by less than 0.1 % on log-normal lengths


@dataclass(frozen=True)
class PackingPlan:
    """Packed sequences of an epoch: sequence ``i`` holds ``samples[starts[i]:starts[i + 1]]``, in that order.

    Shapes: ``samples`` is [num_samples], ``starts`` is [num_sequences + 1]; both int64.
    """

    samples: NDArray[np.int64]
    starts: NDArray[np.int64]

    @property
    def num_sequences(self) -> int:
        """Number of packed sequences in the epoch."""
        return len(self.starts) - 1

    def sequence(self, index: int) -> NDArray[np.int64]:
        """Sample numbers in packed sequence ``index``."""
        return self.samples[self.starts[index] : self.starts[index + 1]]


def plan_epoch(
    lengths: NDArray[np.int64], *, seq_length: int, packing: PackingMode, seed: int, epoch: int
) -> PackingPlan:
    """Assign every sample to a packed sequence.

    Args:
        lengths: tokens of each sample, [num_samples], each between 1 and ``seq_length``.
        seq_length: tokens of a packed sequence.
        packing: ``none`` for one sample per sequence, ``greedy`` and ``best_fit`` as in the module docstring.
        seed: of the run.
        epoch: 0 for the first pass over the data.
    """
    assert len(lengths) == 0 or (lengths.min() >= 1 and lengths.max() <= seq_length), "the caller checks lengths"
    generator = np.random.default_rng([_SEED_DOMAIN, seed, epoch])
    order = generator.permutation(len(lengths))
    if packing == "none":
        return PackingPlan(samples=order, starts=np.arange(len(order) + 1))
    if packing == "best_fit":
        order = np.argsort(-lengths * generator.uniform(1, 1 + _PERTURBATION, len(lengths)), kind="stable")
    sequences = _best_fit(order, lengths, seq_length)
    # Sequences that opened early are the fullest; without this shuffle an epoch would end with sparse ones.
    sequences = [sequences[i] for i in generator.permutation(len(sequences))]
    return PackingPlan(
        samples=np.array([sample for sequence in sequences for sample in sequence], dtype=np.int64),
        starts=np.cumsum([0, *(len(sequence) for sequence in sequences)], dtype=np.int64),
    )


def plan_step(
    lengths: NDArray[np.int64], costs: NDArray[np.float64], *, capacity: int, num_replicas: int, multiple: int = 1
) -> list[list[list[int]]]:
    """Distribute the samples of one iteration over packed micro batches.

    Every replica gets the same number of micro batches, the fewest that best fit needs. Samples are placed from the
    most to the least costly one, each into the micro batch with the lowest cost that has room for it. If a sample finds
    no room in this way, the micro batches are those of best fit, which are not balanced.

    Args:
        lengths: tokens of each sample, [num_samples], each at most ``capacity``.
        costs: estimated work of each sample, [num_samples].
        capacity: most tokens of a micro batch.
        num_replicas: data-parallel replicas.
        multiple: the number of micro batches of a replica is a multiple of this.

    Returns:
        The samples of each micro batch of each replica, [micro batch][replica], costly micro batches first. Some may be
        empty.
    """
    assert len(lengths) == 0 or lengths.max() <= capacity, "the caller checks lengths"
    by_length = np.argsort(-lengths, kind="stable")
    fewest = _best_fit(by_length, lengths, capacity)
    num_micro_batches = max(1, -(-len(fewest) // (num_replicas * multiple))) * multiple
    count = num_micro_batches * num_replicas
    bins = _balanced(lengths, costs, capacity, count) or fewest + [[] for _ in range(count - len(fewest))]
    bins.sort(key=lambda samples: -float(costs[samples].sum()))
    # Every second row is reversed, so that the first replica does not get the costliest one of each row.
    rows = [bins[start : start + num_replicas] for start in range(0, count, num_replicas)]
    return [row[:: -1 if number % 2 else 1] for number, row in enumerate(rows)]


def _balanced(
    lengths: NDArray[np.int64], costs: NDArray[np.float64], capacity: int, count: int
) -> list[list[int]] | None:
    """The samples of ``count`` micro batches of about equal cost; None if a sample finds no room."""
    rooms, loads = np.full(count, capacity), np.zeros(count)
    bins: list[list[int]] = [[] for _ in range(count)]
    for sample in np.argsort(-costs, kind="stable").tolist():
        index = int(np.where(rooms >= lengths[sample], loads, np.inf).argmin())
        if rooms[index] < lengths[sample]:
            return None
        bins[index].append(sample)
        rooms[index] -= lengths[sample]
        loads[index] += costs[sample]
    return bins


def _best_fit(order: NDArray[np.int64], lengths: NDArray[np.int64], seq_length: int) -> list[list[int]]:
    """The samples of each packed sequence. Of the fullest sequences with enough room, a sample gets the earliest."""
    sequences: list[list[int]] = []
    open_sequences: dict[int, list[int]] = {}  # free tokens -> heap of sequence indices
    rooms: list[int] = []  # the keys of open_sequences, sorted
    for sample, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        slot = bisect.bisect_left(rooms, length)
        if slot < len(rooms):
            room = rooms[slot]
            index = heapq.heappop(open_sequences[room])
            if not open_sequences[room]:
                del open_sequences[room], rooms[slot]
        else:
            room, index = seq_length, len(sequences)
            sequences.append([])
        sequences[index].append(sample)
        left = room - length
        if left and left not in open_sequences:
            open_sequences[left] = []
            bisect.insort(rooms, left)
        if left:
            heapq.heappush(open_sequences[left], index)
    return sequences


@dataclass(frozen=True)
class PackingReport:
    """How a packing mode packs the first epoch of a data set; ``overlong`` samples do not fit in a sequence."""

    packing: PackingMode
    seq_length: int
    samples: int
    overlong: int
    tokens: int
    sequences: int

    @property
    def efficiency(self) -> float:
        """Share of the tokens of packed sequences that samples fill; what rounding adds to a sample is empty."""
        return self.tokens / (self.sequences * self.seq_length)

    @property
    def padded_efficiency(self) -> float:
        """That share with one sample per sequence."""
        return self.tokens / (self.samples * self.seq_length)

    def __str__(self) -> str:
        return (
            f"packing {self.packing}: {self.samples} samples in {self.sequences} sequences of {self.seq_length} "
            f"tokens, {self.efficiency:.1%} filled; one sample per sequence would waste "
            f"{1 - self.padded_efficiency:.1%}; {self.overlong} overlong"
        )


def round_up(lengths: NDArray[np.int64], multiple: int) -> NDArray[np.int64]:
    """Each length rounded up to a multiple of ``multiple``."""
    return -(-lengths // multiple) * multiple
