"""Which samples are left out of training, each with a reason that is counted.

The method trains on raw responses: nothing here runs a program or asks whether an answer is right. A filter is a
predicate on one sample that is true where the sample goes; the first in ``FILTERS`` that holds gives the reason.
To add one: write the predicate, give it a switch in ``FilterConfig``, add its row.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_ssd.config.dataset import FilterConfig
from megatron_ssd.schema import Sample

SHORTEST = "shortest"


class Filter(NamedTuple):
    """A row of the table: the reason's name, the predicate, and whether the configuration asks for it."""

    reason: str
    drops: Callable[[Sample], bool]
    is_on: Callable[[FilterConfig], bool]


def is_skipped(sample: Sample) -> bool:
    """Whether the sampler could not run the prompt, so that there is no response at all."""
    return sample.finish_reason == "skipped"


def is_empty(sample: Sample) -> bool:
    """Whether the response is nothing but white space."""
    return not sample.response.strip()


def is_one_line_stub(sample: Sample) -> bool:
    """Whether the response has one line only; blank lines and Markdown fences are not counted."""
    stripped = (line.strip() for line in sample.response.splitlines())
    lines = (line for line in stripped if line and not line.startswith("```"))
    return len(list(itertools.islice(lines, 2))) == 1


FILTERS = (
    Filter("skipped", is_skipped, lambda config: True),
    Filter("empty", is_empty, lambda config: config.drop_empty),
    Filter("one_line_stub", is_one_line_stub, lambda config: config.drop_one_line_stubs),
)


def reason_to_drop(sample: Sample, config: FilterConfig) -> str | None:
    """The name of the first filter that drops ``sample``; None where it stays."""
    return next((row.reason for row in FILTERS if row.is_on(config) and row.drops(sample)), None)


def shortest(lengths: NDArray[np.int64], fraction: float) -> NDArray[np.bool_]:
    """Which samples are among the shortest ``fraction``, [num_samples]; the earlier of two equals goes first.

    Args:
        lengths: characters of each response, [num_samples]; negative where another filter dropped the sample already,
            which then counts neither in the fraction nor in the result.
        fraction: of the samples with a length, rounded down to whole samples.
    """
    candidates = np.flatnonzero(lengths >= 0)
    order = candidates[np.argsort(lengths[candidates], kind="stable")]
    chosen = np.zeros(len(lengths), dtype=np.bool_)
    chosen[order[: int(len(order) * fraction)]] = True
    return chosen
