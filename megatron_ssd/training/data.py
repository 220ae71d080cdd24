"""Micro batches of one process, a function of the iteration number alone.

Rows have a global order that the data set fixes from (seed, epoch). Iteration i (from 1) takes the
``global_batch_size`` rows after the first (i - 1) x ``global_batch_size``; each data-parallel replica takes its slice
of every micro batch. So resuming needs no state, and no layout changes which rows an iteration sees.

Worked: global batch 8, micro batch 2, 2 replicas, iteration 3. Rows 16..23; micro batch 0 is rows 16 17 on replica 0
and 18 19 on replica 1, micro batch 1 is rows 20 21 and 22 23.

Shape suffixes: B micro batch, S sequence.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_ssd.config.training import TrainingConfig
from megatron_ssd.dataset.training import TrainingDataset


@dataclass(frozen=True)
class Batch:
    """One micro batch on the device, each tensor [B, S]. Every pipeline stage builds its own, mask included.

    ``attention_mask`` [B, 1, S, S] is set where rows are packed and Megatron-Core's own layers run,
    ``packed_seq_params`` where they are packed and TransformerEngine runs; with neither, attention is plainly causal.
    """

    tokens: Tensor
    labels: Tensor
    loss_weights: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    packed_seq_params: Any | None


@dataclass(frozen=True)
class BatchSource:
    """Cuts the micro batches of one data-parallel replica from a data set."""

    dataset: TrainingDataset
    training: TrainingConfig
    data_parallel_rank: int
    data_parallel_size: int
    transformer_engine: bool
    device: str
    dtype: torch.dtype

    def micro_batches(self, iteration: int) -> Iterator[Batch]:
        """The micro batches of ``iteration`` (from 1), in order."""
        for rows in self._row_numbers(iteration):
            yield self._batch([self.dataset.row(*self.dataset.locate(row)) for row in rows])

    def normalizer(self, iteration: int) -> float:
        """Sum of all loss weights of the global batch of ``iteration``: what loss and gradient are divided by.

        From the index alone, so that every rank knows it without asking another.
        """
        size = self.training.global_batch_size
        rows = range((iteration - 1) * size, iteration * size)
        return sum(self.dataset.row_weight(*self.dataset.locate(row)) for row in rows)

    def _row_numbers(self, iteration: int) -> Iterator[range]:
        size = self.training.micro_batch_size
        first = (iteration - 1) * self.training.global_batch_size + self.data_parallel_rank * size
        for number in range(self.training.num_microbatches(self.data_parallel_size)):
            start = first + number * size * self.data_parallel_size
            yield range(start, start + size)

    def _batch(self, rows: list[dict[str, Any]]) -> Batch:
        columns = {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}
        columns = {key: column.to(self.device, non_blocking=True) for key, column in columns.items()}
        packed = self.training.packing != "none"
        segments_BS = columns["segment_ids"]
        return Batch(
            tokens=columns["tokens"],
            labels=columns["labels"],
            loss_weights=columns["loss_weights"],
            position_ids=columns["position_ids"],
            attention_mask=segment_mask(segments_BS, self.dtype) if packed and not self.transformer_engine else None,
            packed_seq_params=packed_sequences(segments_BS) if packed and self.transformer_engine else None,
        )


def segment_mask(segment_ids_BS: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, S, S] to add to attention scores: 0 where a query may see a key, -inf elsewhere.

    A query sees the keys of its own segment up to itself; padding is a segment too, so no row of the mask is empty.
    """
    same = segment_ids_BS[:, None, :, None] == segment_ids_BS[:, None, None, :]
    seen = same & _causal(segment_ids_BS.shape[1], segment_ids_BS.device)
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


@functools.lru_cache(maxsize=2)
def _causal(length: int, device: torch.device) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).tril_()


def packed_sequences(segment_ids_BS: Tensor) -> Any:
    """Megatron-Core's ``PackedSeqParams`` (format thd) of one packed row: where its segments begin and end."""
    from megatron.core.packed_seq_params import PackedSeqParams

    assert segment_ids_BS.shape[0] == 1, "TransformerEngine takes packed rows one at a time"
    segment_ids_S = segment_ids_BS[0]
    starts = torch.nonzero(segment_ids_S[1:] != segment_ids_S[:-1]).flatten() + 1
    borders = torch.nn.functional.pad(starts, (1, 1))
    borders[-1] = segment_ids_S.shape[0]
    longest = int(borders.diff().max())
    cumulative_lengths = borders.to(torch.int32)
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=cumulative_lengths,
        cu_seqlens_kv=cumulative_lengths,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )
