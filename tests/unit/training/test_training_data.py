"""Tests for the batches of training."""

import dataclasses
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ssd.config.training import TrainingConfig
from megatron_ssd.training.data import BatchSource, segment_lengths


def numbered_sequences() -> Any:
    """A data set with seven sequences per epoch, in which sequence n is filled with n."""

    def filled(number: int) -> dict[str, np.ndarray]:
        ids = np.full(4, number, dtype=np.int64)
        return {"tokens": ids, "labels": ids, "loss_weights": np.ones(4, dtype=np.float32), "position_ids": ids,
                "segment_ids": np.ones(4, dtype=np.int64), "padding_mask": np.zeros(4, dtype=bool)}  # fmt: skip

    return SimpleNamespace(
        joined=lambda located, length: filled(located[0][0] * 7 + located[0][1] if located else -1),
        padded_length=lambda epoch, index: 4,
        num_sequences=lambda epoch: 7,
        locate=lambda consumed: divmod(consumed, 7),
        sequence_weight=lambda epoch, index: epoch * 7.0 + index,
        samples_in_sequence=lambda epoch, index: np.array([epoch * 7 + index]),
        lengths_in_sequence=lambda epoch, index: np.array([epoch * 7 + index + 1]),
    )


def source(
    rank: int, size: int, *, micro: int, global_batch: int, packing: Any = "none", seq_length: int = 4
) -> BatchSource:
    training = TrainingConfig(
        global_batch_size=global_batch, micro_batch_size=micro, seq_length=seq_length, packing=packing, train_iters=100,
        batch_unit="packed_sequences",
    )  # fmt: skip
    return BatchSource(
        dataset=numbered_sequences(), training=training, data_parallel_rank=rank, data_parallel_size=size, device="cpu"
    )


def sequences_of(replica: BatchSource, iteration: int) -> list[list[int]]:
    """The numbers of the sequences in each micro batch."""
    return [batch.tokens[:, 0].tolist() for batch in replica.micro_batches(replica.plan(iteration))]


def test_the_example_in_the_docstring() -> None:
    replicas = [source(rank, 2, micro=2, global_batch=8) for rank in range(2)]
    assert [sequences_of(replica, 3) for replica in replicas] == [[[16, 17], [20, 21]], [[18, 19], [22, 23]]]


@given(size=st.integers(1, 4), micro=st.integers(1, 3), num_micro=st.integers(1, 3), iteration=st.integers(1, 20))
def test_replicas_see_each_sequence_of_the_global_batch_once(
    size: int, micro: int, num_micro: int, iteration: int
) -> None:
    global_batch = size * micro * num_micro
    replicas = [source(rank, size, micro=micro, global_batch=global_batch) for rank in range(size)]
    seen = sorted(number for replica in replicas for batch in sequences_of(replica, iteration) for number in batch)
    assert seen == list(range((iteration - 1) * global_batch, iteration * global_batch))


def test_every_replica_knows_the_weight_of_the_global_batch() -> None:
    for rank in range(2):
        assert source(rank, 2, micro=2, global_batch=8).normalizer(3) == sum(range(16, 24))


def test_an_iteration_does_not_depend_on_earlier_ones() -> None:
    fresh, used = source(0, 1, micro=2, global_batch=4), source(0, 1, micro=2, global_batch=4)
    for iteration in range(1, 6):
        sequences_of(used, iteration)
    assert sequences_of(used, 6) == sequences_of(fresh, 6)


def test_the_digest_depends_only_on_the_samples_of_the_global_batch() -> None:
    digests = {source(rank, size, micro=2, global_batch=8).sample_digest(3) for rank, size in ((0, 1), (0, 2), (1, 2))}
    assert len(digests) == 1
    assert digests != {source(0, 1, micro=2, global_batch=8).sample_digest(4)}
    assert re.fullmatch("[0-9a-f]{16}", digests.pop())


def test_sample_lengths_cover_the_global_batch() -> None:
    assert source(1, 2, micro=1, global_batch=4).sample_lengths(2).tolist() == [5, 6, 7, 8]


def test_a_single_pass_ends_with_sequences_of_padding() -> None:
    validation = dataclasses.replace(source(0, 1, micro=2, global_batch=4), single_pass=True)  # seven sequences
    assert validation.batches_in_pass == 2
    assert sequences_of(validation, 2) == [[4, 5], [6, -1]]
    assert validation.normalizer(2) == 4 + 5 + 6
    assert validation.sample_lengths(2).tolist() == [5, 6, 7]
    assert source(0, 1, micro=2, global_batch=4).normalizer(2) == 4 + 5 + 6 + 7


def packed_steps(rank: int, size: int, **changes: Any) -> BatchSource:
    """Samples of 1 to 7 tokens, of which 12 are packed into micro batches of at most 16."""
    training = TrainingConfig(global_batch_size=12, seq_length=8, tokens_per_micro_batch=16, train_iters=100)
    dataset = numbered_sequences()
    dataset.padded_length = lambda epoch, index: index + 1
    return BatchSource(dataset=dataset, training=training, data_parallel_rank=rank, data_parallel_size=size,
                       device="cpu", **changes)  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_samples_of_a_step_are_those_of_an_unpacked_one(size: int) -> None:
    plans = packed_steps(0, size).plan(3)
    parts = [at for row in plans for plan in row for sequence in plan.sequences for at in sequence]
    assert sorted(7 * epoch + index for epoch, index in parts) == list(range(24, 36))
    assert {len(row) for row in plans} == {size}
    lengths = [sum(index + 1 for _, index in plan.sequences[0]) for row in plans for plan in row]
    assert [plan.length for row in plans for plan in row] == lengths
    assert max(lengths) <= 16


def test_pipelines_and_experts_get_micro_batches_of_one_length() -> None:
    plans = packed_steps(1, 2, equal_lengths=True, length_multiple=4).plan(1)
    (length,) = {plan.length for row in plans for plan in row}
    assert length % 4 == 0
    assert len(packed_steps(0, 1, micro_batch_multiple=2).plan(1)) % 2 == 0


def test_samples_without_packing_are_padded_to_the_longest_of_their_micro_batch() -> None:
    training = TrainingConfig(global_batch_size=4, micro_batch_size=2, seq_length=8, packing="none", train_iters=100)
    unpacked = dataclasses.replace(packed_steps(0, 1), training=training)
    assert [plan.length for row in unpacked.plan(1) for plan in row] == [2, 4]  # samples of 1 and 2, 3 and 4 tokens


def test_segments_end_with_their_sequence() -> None:
    ids = np.array([[1, 1, 1, 2, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
    assert segment_lengths(ids) == (3, 1, 2, 6, 2, 4)


def packed_sequence(*lengths: int) -> dict[str, Any]:
    """A sequence of 8 tokens. The tokens of each sample count up from 0."""
    tokens = np.concatenate([*(np.arange(length) for length in lengths), np.arange(8 - sum(lengths))])
    numbers = np.repeat(range(1, len(lengths) + 1), lengths)
    segment_ids = np.concatenate([numbers, np.zeros(8 - sum(lengths), dtype=np.int64)])
    weights = (segment_ids > 0).astype(np.float32)
    return {"tokens": tokens, "labels": tokens + 1, "loss_weights": weights, "position_ids": tokens,
            "segment_ids": segment_ids, "padding_mask": segment_ids == 0}  # fmt: skip


def test_packed_sequences_of_a_micro_batch_are_joined() -> None:
    replica = source(0, 1, micro=2, global_batch=4, packing="greedy", seq_length=8)
    assert replica.schedule_shape(replica.plan(1)[0][0]) == (16, 1)
    unpacked = source(0, 1, micro=2, global_batch=4)
    assert unpacked.schedule_shape(unpacked.plan(1)[0][0]) == (4, 2)
    batch = replica.batch([packed_sequence(3, 5), packed_sequence(4)])
    assert batch.tokens.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2, 3]]
    assert batch.packed_seq_params.cu_seqlens_q.tolist() == [0, 3, 8, 12, 16]
    assert batch.packed_seq_params.max_seqlen_q == 5
    assert batch.loss_weights.tolist() == [[1.0] * 12 + [0.0] * 4]
    assert batch.padding_mask.tolist() == [[False] * 12 + [True] * 4]


def test_sequences_without_packing_are_not_joined() -> None:
    replica = source(0, 1, micro=2, global_batch=4)
    batch = next(replica.micro_batches(replica.plan(1)))
    assert batch.tokens.shape == (2, 4)
    assert batch.packed_seq_params is None


@pytest.mark.parametrize("packing", ["none", "greedy"])
def test_context_parallel_ranks_split_every_sequence(packing: str) -> None:
    full = source(0, 1, micro=2, global_batch=4, packing=packing, seq_length=8)
    sequences = (
        [packed_sequence(4, 4), packed_sequence(4)] if packing == "greedy" else [packed_sequence(8), packed_sequence(8)]
    )
    parts = [dataclasses.replace(full, context_parallel_size=2, context_parallel_rank=rank) for rank in range(2)]
    batches = [part.batch(sequences) for part in parts]
    if packing == "greedy":
        # Each segment of 4 has four chunks. One rank gets the first and the last, the other rank the two between.
        assert [batch.tokens.tolist() for batch in batches] == [[[0, 3] * 4], [[1, 2] * 4]]
        assert all(batch.packed_seq_params.cu_seqlens_q.tolist() == [0, 4, 8, 12, 16] for batch in batches)
    else:
        assert [batch.tokens.tolist() for batch in batches] == [[[0, 1, 6, 7]] * 2, [[2, 3, 4, 5]] * 2]
    assert sum(batch.loss_weights.sum() for batch in batches) == full.batch(sequences).loss_weights.sum()
