from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_ssd.config.training import TrainingConfig
from megatron_ssd.training.data import BatchSource, packed_sequences


def numbered_rows() -> Any:
    """A data set whose row n of seven-row epochs is filled with n."""

    def row(epoch: int, index: int) -> dict[str, np.ndarray]:
        ids = np.full(4, epoch * 7 + index, dtype=np.int64)
        return {"tokens": ids, "labels": ids, "loss_weights": np.ones(4, dtype=np.float32), "position_ids": ids,
                "segment_ids": np.ones(4, dtype=np.int64)}  # fmt: skip

    return SimpleNamespace(
        row=row, locate=lambda consumed: divmod(consumed, 7), row_weight=lambda epoch, index: epoch * 7.0 + index
    )


def source(rank: int, size: int, *, micro: int, global_batch: int, packing: Any = "none") -> BatchSource:
    training = TrainingConfig(
        global_batch_size=global_batch, micro_batch_size=micro, seq_length=4, packing=packing, train_iters=100
    )
    return BatchSource(
        dataset=numbered_rows(),
        training=training,
        data_parallel_rank=rank,
        data_parallel_size=size,
        transformer_engine=False,
        device="cpu",
        dtype=torch.float32,
    )


def rows_of(replica: BatchSource, iteration: int) -> list[list[int]]:
    return [batch.tokens[:, 0].tolist() for batch in replica.micro_batches(iteration)]


def test_the_worked_example_of_the_docstring() -> None:
    replicas = [source(rank, 2, micro=2, global_batch=8) for rank in range(2)]
    assert [rows_of(replica, 3) for replica in replicas] == [[[16, 17], [20, 21]], [[18, 19], [22, 23]]]


@given(size=st.integers(1, 4), micro=st.integers(1, 3), num_micro=st.integers(1, 3), iteration=st.integers(1, 20))
def test_replicas_share_out_each_row_of_the_global_batch_once(
    size: int, micro: int, num_micro: int, iteration: int
) -> None:
    global_batch = size * micro * num_micro
    replicas = [source(rank, size, micro=micro, global_batch=global_batch) for rank in range(size)]
    seen = sorted(row for replica in replicas for batch in rows_of(replica, iteration) for row in batch)
    assert seen == list(range((iteration - 1) * global_batch, iteration * global_batch))


def test_every_replica_knows_the_weight_of_the_whole_batch() -> None:
    for rank in range(2):
        assert source(rank, 2, micro=2, global_batch=8).normalizer(3) == sum(range(16, 24))


def test_an_iteration_does_not_depend_on_those_before() -> None:
    fresh, used = source(0, 1, micro=2, global_batch=4), source(0, 1, micro=2, global_batch=4)
    for iteration in range(1, 6):
        rows_of(used, iteration)
    assert rows_of(used, 6) == rows_of(fresh, 6)


@pytest.mark.parametrize(("packing", "masked"), [("none", False), ("greedy", True)])
def test_only_packed_rows_carry_a_mask(packing: str, masked: bool) -> None:
    batch = next(source(0, 1, micro=2, global_batch=4, packing=packing).micro_batches(1))
    assert (batch.attention_mask is not None) is masked


def test_packed_sequences_give_the_borders_of_the_segments() -> None:
    params = packed_sequences(torch.tensor([[1, 1, 1, 2, 0, 0]]))
    assert params.cu_seqlens_q.tolist() == [0, 3, 4, 6]
    assert params.cu_seqlens_q.dtype == torch.int32
    assert params.max_seqlen_q == 3
    assert packed_sequences(torch.tensor([[1, 1]])).cu_seqlens_q.tolist() == [0, 2]
