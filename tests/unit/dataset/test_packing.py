"""Tests the invariants of ``dataset.packing`` with random lengths."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ssd.dataset.packing import PackingMode, plan_epoch, plan_step, round_up

SEQ_LENGTH = 32
LENGTHS = st.lists(st.integers(1, SEQ_LENGTH), max_size=80).map(lambda values: np.array(values, dtype=np.int64))
PACKED = ["greedy", "best_fit"]
MODES = st.sampled_from(["none", *PACKED])


def long_tailed(num_samples: int, *, median: float, sigma: float, longest: int) -> np.ndarray:
    """Log-normal lengths, cut at ``longest``."""
    random = np.random.default_rng(0)
    lengths = np.exp(random.normal(np.log(median), sigma, num_samples))
    return np.clip(lengths, 1, longest).astype(np.int64)


@settings(max_examples=80)
@given(lengths=LENGTHS, packing=MODES, seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_every_sample_is_packed_once_and_no_sequence_is_overfull(
    lengths: np.ndarray, packing: PackingMode, seed: int, epoch: int
) -> None:
    plan = plan_epoch(lengths, seq_length=SEQ_LENGTH, packing=packing, seed=seed, epoch=epoch)
    assert sorted(plan.samples.tolist()) == list(range(len(lengths)))
    sequences = [plan.sequence(i) for i in range(plan.num_sequences)]
    assert np.array_equal(np.concatenate([np.empty(0, dtype=np.int64), *sequences]), plan.samples)
    assert all(1 <= lengths[sequence].sum() <= SEQ_LENGTH for sequence in sequences)
    assert packing != "none" or all(len(sequence) == 1 for sequence in sequences)


@settings(max_examples=20)
@given(lengths=LENGTHS, packing=MODES, seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_the_plan_is_a_function_of_its_arguments(
    lengths: np.ndarray, packing: PackingMode, seed: int, epoch: int
) -> None:
    first, second = (
        plan_epoch(lengths, seq_length=SEQ_LENGTH, packing=packing, seed=seed, epoch=epoch) for _ in range(2)
    )
    assert np.array_equal(first.samples, second.samples)
    assert np.array_equal(first.starts, second.starts)


@pytest.mark.parametrize("packing", ["none", *PACKED])
def test_order_and_packing_differ_between_epochs_and_seeds(packing: PackingMode) -> None:
    lengths = np.random.default_rng(0).integers(1, SEQ_LENGTH + 1, 200)
    plans = [
        plan_epoch(lengths, seq_length=SEQ_LENGTH, packing=packing, seed=seed, epoch=epoch)
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert all(a.samples.tolist() != b.samples.tolist() for a, b in itertools.combinations(plans, 2))
    if packing != "none":
        sequences = [{frozenset(plan.sequence(i).tolist()) for i in range(plan.num_sequences)} for plan in plans]
        assert all(len(a & b) < 0.7 * len(a) for a, b in itertools.combinations(sequences, 2))


@settings(max_examples=80)
@given(lengths=LENGTHS, packing=st.sampled_from(PACKED), seed=st.integers(0, 5))
def test_no_two_sequences_could_be_merged(lengths: np.ndarray, packing: PackingMode, seed: int) -> None:
    plan = plan_epoch(lengths, seq_length=SEQ_LENGTH, packing=packing, seed=seed, epoch=0)
    used = sorted(int(lengths[plan.sequence(i)].sum()) for i in range(plan.num_sequences))
    # A later sequence contains only samples that did not fit into an earlier one.
    assert all(a + b > SEQ_LENGTH for a, b in itertools.pairwise(used))


def efficiency(lengths: np.ndarray, *, seq_length: int, packing: PackingMode, multiple: int = 1) -> float:
    """Share of the tokens of the first epoch's packed sequences that samples fill."""
    plan = plan_epoch(round_up(lengths, multiple), seq_length=seq_length, packing=packing, seed=0, epoch=0)
    return int(lengths.sum()) / (plan.num_sequences * seq_length)


def test_greedy_packing_wastes_few_tokens() -> None:
    lengths = np.random.default_rng(0).integers(20, 120, 5000)
    assert efficiency(lengths, seq_length=512, packing="greedy") > 0.98


@pytest.mark.parametrize(("median", "sigma"), [(2000, 1.0), (4000, 1.2), (8000, 1.0), (20000, 0.8)])
def test_best_fit_fills_99_percent_with_long_tailed_lengths(median: float, sigma: float) -> None:
    lengths = long_tailed(20_000, median=median, sigma=sigma, longest=65536)
    best_fit = efficiency(lengths, seq_length=65536, packing="best_fit")
    assert best_fit > 0.99
    assert best_fit >= efficiency(lengths, seq_length=65536, packing="greedy")
    # Context parallelism over eight ranks rounds each sample up to a multiple of 16.
    assert efficiency(lengths, seq_length=65536, packing="best_fit", multiple=16) > 0.985


def test_round_up() -> None:
    assert round_up(np.array([1, 4, 5]), 4).tolist() == [4, 4, 8]


@settings(max_examples=150)
@given(lengths=LENGTHS, capacity=st.integers(SEQ_LENGTH, 100), replicas=st.integers(1, 4), multiple=st.integers(1, 3))
def test_a_step_has_every_sample_once_in_the_fewest_micro_batches(
    lengths: np.ndarray, capacity: int, replicas: int, multiple: int
) -> None:
    planned = plan_step(
        lengths, lengths.astype(float) ** 2, capacity=capacity, num_replicas=replicas, multiple=multiple
    )
    assert sorted(sample for row in planned for samples in row for sample in samples) == list(range(len(lengths)))
    assert all(lengths[samples].sum() <= capacity for row in planned for samples in row)
    assert all(len(row) == replicas for row in planned)
    assert len(planned) % multiple == 0
    # One group of micro batches fewer could not hold the tokens, or best fit needs it.
    best_fit = plan_epoch(lengths, seq_length=capacity, packing="best_fit", seed=0, epoch=0).num_sequences
    assert (len(planned) - multiple) * replicas < max(best_fit, 1) + 1
    again = plan_step(lengths, lengths.astype(float) ** 2, capacity=capacity, num_replicas=replicas, multiple=multiple)
    assert planned == again


def test_the_replicas_of_a_step_have_about_the_same_work() -> None:
    lengths = long_tailed(256, median=1500, sigma=0.9, longest=16384)
    costs = lengths + lengths.astype(float) ** 2 / 20_000
    planned = plan_step(lengths, costs, capacity=32768, num_replicas=4)
    work = [sum(costs[row[replica]].sum() for row in planned) for replica in range(4)]
    assert max(work) < 1.01 * min(work)
    assert all(max(costs[s].sum() for s in row) < 1.05 * min(costs[s].sum() for s in row) for row in planned)
