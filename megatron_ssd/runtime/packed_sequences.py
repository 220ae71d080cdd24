"""Describes the packed sequences of a micro batch under context parallelism.

A packed micro batch is one sequence of T tokens, made of segments (samples and padding) that do not attend to each
other. Context parallelism of P ranks cuts each segment into 2P equal chunks and gives rank r chunks r and 2P - 1 - r,
which balances causal attention. Megatron-Core's rotary embedding and TransformerEngine expect exactly this order, so
the length of every segment is a multiple of 2P if P > 1.

Example with P = 2 and segments of 8 and 4 tokens: rank 0 holds 0 1 6 7 and 8 11, rank 1 holds 2 3 4 5 and 9 10. Within
their segments these are the positions 0 1 6 7 and 0 3, and 2 3 4 5 and 1 2.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from numpy.typing import NDArray

from megatron_ssd.runtime.transfer import to_device


@dataclass
class PackedSequences(PackedSeqParams):
    """Megatron-Core's ``PackedSeqParams`` (thd) with the segment lengths as Python integers.

    ``lengths`` are those of all segments of the micro batch, before any split over ranks.
    """

    lengths: tuple[int, ...] = ()


def make_packed_sequences(lengths: tuple[int, ...], *, cp_size: int, device: torch.device | str) -> PackedSequences:
    """Describe a sequence of segments of these ``lengths``.

    Padding that makes a segment a multiple of 2 x cp_size counts as part of it: it comes last, no other token attends
    to it, and its loss weight is zero. So true and padded lengths are equal, which TransformerEngine's kernels handle
    fastest.
    """
    assert all(length > 0 and (cp_size == 1 or length % (2 * cp_size) == 0) for length in lengths), lengths
    cu_seqlens = to_device(torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32), device)
    longest = max(lengths)
    padded = cu_seqlens if cp_size > 1 else None
    return PackedSequences(
        qkv_format="thd", cu_seqlens_q=cu_seqlens, cu_seqlens_kv=cu_seqlens, cu_seqlens_q_padded=padded,
        cu_seqlens_kv_padded=padded, max_seqlen_q=longest, max_seqlen_kv=longest, lengths=lengths,
    )  # fmt: skip


def local_positions(lengths: tuple[int, ...], *, cp_size: int, cp_rank: int) -> NDArray[np.int64]:
    """Positions in the sequence of the tokens that a rank holds, in the rank's order: [T / cp_size]."""
    starts, held = np.cumsum((0, *lengths[:-1])), np.array(lengths) // cp_size
    return np.repeat(starts, held) + segment_positions(lengths, cp_size=cp_size, cp_rank=cp_rank)


def segment_positions(lengths: tuple[int, ...], *, cp_size: int, cp_rank: int) -> NDArray[np.int64]:
    """Positions within their segments of the tokens that a rank holds, in the rank's order: [T / cp_size]."""
    held = [np.arange(length) for length in lengths]
    if cp_size > 1:
        chunks = list(local_chunks(cp_size, cp_rank))
        held = [positions.reshape(2 * cp_size, -1)[chunks].ravel() for positions in held]
    return np.concatenate(held)


def local_chunks(cp_size: int, cp_rank: int) -> tuple[int, int]:
    """Which two of a segment's 2 x cp_size chunks a rank holds."""
    return cp_rank, 2 * cp_size - 1 - cp_rank


@functools.lru_cache(maxsize=4)
def equal_sequences(num_sequences: int, length: int, *, cp_size: int, device: torch.device) -> PackedSequences:
    """Unpacked sequences, each as one segment."""
    return make_packed_sequences((length,) * num_sequences, cp_size=cp_size, device=device)
