"""Whether a sequence of token ids ends in a loop: the same n-gram over and over, up to the end.

A sequence ends with period p over its last L ids where each of them but for the first p equals the id p places before.
The loop of period p is the longest such end. It counts where it holds ``min_repeats`` times its period and
``min_tokens``; the last repeat may be cut short anywhere. Of several periods the shortest that counts is taken: all
multiples of it loop as well.

Candidates for the period are the places where the last id stands before, and each is compared over the length that it
needs. Whether there is a loop follows from the last ``min_repeats`` x ``max_period`` ids, whatever the length of the
sequence: on text in as many comparisons, at worst, with near misses at every period, in ``max_period`` times as many.
Where a loop begins takes one more comparison of each id.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megatron_ssd.config.dataset import LoopConfig


def loop_start(token_ids: Sequence[int] | NDArray[np.int64], config: LoopConfig) -> int | None:
    """Index of the first id of the loop that ``token_ids`` [num_tokens] end in; None where they end in none."""
    # No period needs more of the end than this to be seen, and ids in a list cost more to convert than to compare.
    window = max(config.min_repeats * config.max_period, config.min_tokens)
    period = _period(_backwards(token_ids[-window:]), config)
    if period is None:
        return None
    backwards = _backwards(token_ids)
    broken = np.flatnonzero(backwards[period:] != backwards[:-period])
    length = period + (int(broken[0]) if len(broken) else len(backwards) - period)
    return len(backwards) - length


def _backwards(token_ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.asarray(token_ids, dtype=np.int64)[::-1]


def _period(backwards: NDArray[np.int64], config: LoopConfig) -> int | None:
    """The shortest period with which ``backwards`` begins for long enough."""
    if len(backwards) == 0:
        return None
    longest = min(config.max_period, len(backwards) // config.min_repeats)
    candidates = np.flatnonzero(backwards[1 : longest + 1] == backwards[0]) + 1
    for period in candidates.tolist():
        needed = max(config.min_repeats * period, config.min_tokens)
        if needed <= len(backwards) and np.array_equal(backwards[period:needed], backwards[: needed - period]):
            return int(period)
    return None
