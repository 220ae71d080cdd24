"""Tests the loop detector against a direct implementation of its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_ssd.config.dataset import LoopConfig
from megatron_ssd.dataset.filters import loop_start


def by_definition(ids: list[int], config: LoopConfig) -> int | None:
    """Start of the loop with the shortest period that is long enough."""
    for period in range(1, config.max_period + 1):
        length = min(period, len(ids))
        while length < len(ids) and ids[-1 - length] == ids[-1 - length + period]:
            length += 1
        if length >= max(config.min_repeats * period, config.min_tokens) and period < len(ids):
            return len(ids) - length
    return None


bounds = st.builds(
    LoopConfig, max_period=st.integers(1, 8), min_repeats=st.integers(2, 4), min_tokens=st.integers(2, 12)
)
endings = st.builds(
    lambda before, unit, times, cut: [*before, *(unit * times)][: len(before) + len(unit) * times - cut],
    st.lists(st.integers(0, 2), max_size=12),
    st.lists(st.integers(0, 2), min_size=1, max_size=8),
    st.integers(0, 8),
    st.integers(0, 3),
)


@settings(max_examples=500)
@given(ids=st.one_of(endings, st.lists(st.integers(0, 1), max_size=40)), config=bounds)
@example(ids=[], config=LoopConfig())
@example(ids=[1], config=LoopConfig(min_tokens=2, min_repeats=2))
@example(ids=[1, 1], config=LoopConfig(min_tokens=2, min_repeats=2))
def test_the_start_of_the_loop_equals_the_definition(ids: list[int], config: LoopConfig) -> None:
    assert loop_start(ids, config) == by_definition(ids, config)


@given(unit=st.lists(st.integers(0, 9), min_size=1, max_size=50), cut=st.integers(0, 49), before=st.integers(0, 300))
def test_a_loop_is_found_wherever_its_last_repeat_is_cut(unit: list[int], cut: int, before: int) -> None:
    head = list(range(100, 100 + before))
    ids = head + unit * 130 + unit[: cut % len(unit)]
    assert loop_start(ids, LoopConfig()) == before


def test_bounds_of_length_repeats_and_period() -> None:
    head = list(range(1000, 1100))
    config = LoopConfig(max_period=10, min_repeats=3, min_tokens=12)
    assert loop_start(head + [1] * 11, config) is None
    assert loop_start(head + [1] * 12, config) == 100
    assert loop_start(head + list(range(6)) * 2 + [0, 1, 2, 3, 4], config) is None
    assert loop_start(head + list(range(6)) * 3, config) == 100
    assert loop_start(head + list(range(11)) * 5, config) is None
    assert loop_start(head + [1] * 50 + [2], config) is None


def test_the_defaults_with_very_long_responses() -> None:
    """Random ids, a repeated paragraph, a constant, and the worst case: almost a loop at every period."""
    generator = np.random.default_rng(0)
    text = generator.integers(0, 50_000, 65_536)
    assert loop_start(text, LoopConfig()) is None
    paragraph = np.concatenate([text[:30_000], np.resize(text[:1_777], 35_536)])
    assert loop_start(paragraph, LoopConfig()) == 30_000
    assert loop_start(np.zeros(65_536, dtype=np.int64), LoopConfig()) == 0
    near = np.zeros(65_536, dtype=np.int64)
    near[-100] = 1
    assert loop_start(near, LoopConfig()) is None


def test_lists_and_arrays_give_the_same_result() -> None:
    ids = [1, 2, 3] + [4, 5] * 70
    assert loop_start(ids, LoopConfig()) == loop_start(np.array(ids), LoopConfig()) == 3


@pytest.mark.parametrize("length", range(5))
def test_short_responses_have_no_loop(length: int) -> None:
    assert loop_start([7] * length, LoopConfig()) is None
