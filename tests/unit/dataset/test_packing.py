"""The invariants in packing's module docstring, over random lengths."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ssd.dataset.packing import PackingMode, plan_epoch

ROW_LENGTH = 32
LENGTHS = st.lists(st.integers(1, ROW_LENGTH), max_size=80).map(lambda values: np.array(values, dtype=np.int64))
MODES = st.sampled_from(["none", "greedy"])


@settings(max_examples=80, deadline=None)
@given(lengths=LENGTHS, packing=MODES, seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_every_sample_once_and_no_row_too_long(
    lengths: np.ndarray, packing: PackingMode, seed: int, epoch: int
) -> None:
    plan = plan_epoch(lengths, row_length=ROW_LENGTH, packing=packing, seed=seed, epoch=epoch)
    assert sorted(plan.samples.tolist()) == list(range(len(lengths)))
    rows = [plan.row(i) for i in range(plan.num_rows)]
    assert np.array_equal(np.concatenate([np.empty(0, dtype=np.int64), *rows]), plan.samples)
    assert all(1 <= lengths[row].sum() <= ROW_LENGTH for row in rows)
    assert packing == "greedy" or all(len(row) == 1 for row in rows)


@settings(max_examples=20, deadline=None)
@given(lengths=LENGTHS, packing=MODES, seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_plan_is_a_function_of_seed_and_epoch(lengths: np.ndarray, packing: PackingMode, seed: int, epoch: int) -> None:
    first, second = (
        plan_epoch(lengths, row_length=ROW_LENGTH, packing=packing, seed=seed, epoch=epoch) for _ in range(2)
    )
    assert np.array_equal(first.samples, second.samples)
    assert np.array_equal(first.starts, second.starts)


@pytest.mark.parametrize("packing", ["none", "greedy"])
def test_order_differs_between_epochs_and_seeds(packing: PackingMode) -> None:
    lengths = np.random.default_rng(0).integers(1, ROW_LENGTH + 1, 200)
    plans = [
        plan_epoch(lengths, row_length=ROW_LENGTH, packing=packing, seed=seed, epoch=epoch).samples.tolist()
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert all(a != b for a, b in itertools.combinations(plans, 2))


@settings(max_examples=80, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 5))
def test_greedy_never_leaves_two_rows_that_fit_in_one(lengths: np.ndarray, seed: int) -> None:
    plan = plan_epoch(lengths, row_length=ROW_LENGTH, packing="greedy", seed=seed, epoch=0)
    used = sorted(int(lengths[plan.row(i)].sum()) for i in range(plan.num_rows))
    # The row that opened later holds only samples that did not fit the earlier one.
    assert all(a + b > ROW_LENGTH for a, b in itertools.pairwise(used))


def test_greedy_wastes_little() -> None:
    lengths = np.random.default_rng(0).integers(20, 120, 5000)
    plan = plan_epoch(lengths, row_length=512, packing="greedy", seed=0, epoch=0)
    assert lengths.sum() / (plan.num_rows * 512) > 0.98
