"""Counting losses that are no number, and telling jumps, from the losses alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ssd.errors import UserError
from megatron_ssd.training.watch import LossWatch

LOSSES = st.lists(st.floats(0.01, 100.0) | st.just(math.nan), max_size=80)


def run(watch: LossWatch, losses: list[float]) -> list[bool | None]:
    """None for a skipped iteration, else whether it jumped."""
    told: list[bool | None] = []
    for loss in losses:
        if math.isfinite(loss):
            told.append(watch.take(loss, spike_factor=2.0))
        else:
            watch.skip()
            told.append(None)
    return told


@given(losses=LOSSES, data=st.data())
def test_stopped_anywhere_and_resumed_it_tells_the_same(losses: list[float], data: Any) -> None:
    stop = data.draw(st.integers(0, len(losses)))
    whole, first, second = LossWatch(), LossWatch(), LossWatch()
    expected = run(whole, losses)
    told = run(first, losses[:stop])
    second.load_state_dict(first.state_dict())
    assert told + run(second, losses[stop:]) == expected
    assert second == whole


@given(losses=LOSSES)
def test_every_iteration_is_counted_once(losses: list[float]) -> None:
    watch = LossWatch()
    run(watch, losses)
    assert watch.skipped == sum(math.isnan(loss) for loss in losses)
    assert watch.seen == len(losses) - watch.skipped
    in_row = next((n for n, loss in enumerate(reversed(losses)) if not math.isnan(loss)), len(losses))
    assert watch.skipped_in_row == in_row


def test_a_jump_is_told_once_the_mean_has_settled() -> None:
    assert run(LossWatch(), [4.0, 9.0]) == [False, False]
    told = run(LossWatch(), [4.0, 4.0, 4.0, 4.0, 4.0, 7.9, 9.5, 4.0])
    assert told == [False] * 6 + [True, False]


def test_too_many_in_a_row_stop_the_run_and_one_good_one_forgives() -> None:
    watch = LossWatch()
    run(watch, [1.0, math.nan, math.nan, 1.0, math.nan, math.nan])
    watch.check(6, max_skipped=3)
    watch.skip()
    with pytest.raises(UserError, match="must be finite, and were not for 3 iterations up to 7"):
        watch.check(7, max_skipped=3)
