"""Tests for the loss spike detector."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ssd.errors import UserError
from megatron_ssd.training.step import LossSpikeDetector

LOSSES = st.lists(st.floats(0.01, 100.0) | st.just(math.nan), max_size=80)


def detector(max_skipped: int = 3) -> LossSpikeDetector:
    return LossSpikeDetector(spike_factor=2.0, max_skipped=max_skipped)


def run(spikes: LossSpikeDetector, losses: list[float]) -> list[bool | None]:
    """Whether the loss of each iteration is a spike; None for a skipped iteration."""
    found: list[bool | None] = []
    for loss in losses:
        if math.isfinite(loss):
            found.append(spikes.update(loss))
        else:
            spikes.skip()
            found.append(None)
    return found


@given(losses=LOSSES, data=st.data())
def test_a_detector_that_is_stopped_and_resumed_finds_the_same_spikes(losses: list[float], data: Any) -> None:
    stop = data.draw(st.integers(0, len(losses)))
    uninterrupted, first, second = detector(), detector(), detector()
    expected = run(uninterrupted, losses)
    found = run(first, losses[:stop])
    second.load_state_dict(first.state_dict())
    assert found + run(second, losses[stop:]) == expected
    assert second == uninterrupted


@given(losses=LOSSES)
def test_finite_and_skipped_losses_are_counted(losses: list[float]) -> None:
    spikes = detector()
    run(spikes, losses)
    assert spikes.seen == sum(not math.isnan(loss) for loss in losses)
    in_row = next((n for n, loss in enumerate(reversed(losses)) if not math.isnan(loss)), len(losses))
    assert spikes.skipped_in_row == in_row


def test_spikes_are_found_only_after_the_first_losses() -> None:
    assert run(detector(), [4.0, 9.0]) == [False, False]
    found = run(detector(), [4.0, 4.0, 4.0, 4.0, 4.0, 7.9, 9.5, 4.0])
    assert found == [False] * 6 + [True, False]


def test_too_many_consecutive_skipped_iterations_stop_the_run() -> None:
    spikes = detector(max_skipped=3)
    run(spikes, [1.0, math.nan, math.nan, 1.0, math.nan, math.nan])
    spikes.check(6)
    spikes.skip()
    with pytest.raises(UserError, match="must be finite, and were not for 3 iterations up to 7"):
        spikes.check(7)
