"""Whether a sequence of token ids ends in a loop: the same n-gram over and over, up to the end.

A sequence ends with period p over its last L ids where each of them but for the first p equals the id p places before.
The loop of period p is the longest such end. It counts where it holds ``min_repeats`` times its period and
``min_tokens``; the last repeat may be cut short anywhere. Of several periods the shortest that counts is taken: all
multiples of it loop as well.

Candidates for the period are the places where the last id stands before, and each is compared over the length that it
needs. So the time is linear in the sequence, and beside that at most ``min_repeats`` x ``max_period`` squared
comparisons of arrays, which only near misses at every period need.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megatron_ssd.config.dataset import LoopConfig


def loop_start(token_ids: Sequence[int] | NDArray[np.int64], config: LoopConfig) -> int | None:
    """Index of the first id of the loop that ``token_ids`` [num_tokens] end in; None where they end in none."""
    backwards = np.asarray(token_ids, dtype=np.int64)[::-1]
    period = _period(backwards, config)
    if period is None:
        return None
    broken = np.flatnonzero(backwards[period:] != backwards[:-period])
    length = period + (int(broken[0]) if len(broken) else len(backwards) - period)
    return len(backwards) - length


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
