"""Segments of packed rows: what of them a context-parallel rank holds, and in which groups attention takes them.

A micro batch of packed rows is one row of T positions, cut into segments (samples, and padding) that do not see each
other. Context parallelism of P ranks cuts each segment into 2P equal chunks and gives rank r chunks r and 2P - 1 - r,
which evens out causal attention; Megatron-Core's rotary positions and TransformerEngine expect exactly this. So the
length of every segment is a multiple of 2P where P > 1.

Worked, P = 2, segments of 8 and 4: rank 0 holds 0 1 6 7 and 8 11, rank 1 holds 2 3 4 5 and 9 10.

Attention over segments is a list of spans: queries that stand together, with the keys from the segment's start to the
last of these queries. Without context parallelism a segment is one span, else two. Short spans of about the same length
are padded to one shape and computed together. All of this depends on lengths alone and is made once a batch.

Shape suffixes: T positions of the row, L = T / P positions of this rank, U slots of padded queries, W of padded keys.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from numpy.typing import NDArray
from torch import Tensor

_PADDING = 0.25  # of the longest span in a group: what a shorter one may lack
_FEW = 8  # positions that any span may lack, so that short ones do not end up in groups of their own


@dataclass(frozen=True)
class Span:
    """Queries and the keys they see; the last query sees all of the keys.

    ``query`` is the place of the first query among this rank's positions, ``key`` that of the first key in the row.
    """

    query: int
    num_queries: int
    key: int
    num_keys: int


@dataclass(frozen=True)
class SpanGroup:
    """Spans computed as one batch of shape [count, num_queries] x [count, num_keys].

    Query i of a span sees key j where j <= i + offset, with the span's own ``offsets``. Padding is at the end, where
    no query of a span sees it.
    """

    count: int
    num_queries: int
    num_keys: int
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class AttentionPlan:
    """How positions go to the slots of groups and come back.

    Attributes:
        query_of_slot: [U], position of this rank that a query slot holds; an unused slot repeats another's.
        slot_of_query: [L], slot of each position of this rank, the inverse of it.
        unused_slots: numbers of the unused query slots.
        key_of_slot: [W], place of a key slot's position in the keys of all ranks one after the other; None without
            context parallelism, where key slots are query slots.
    """

    groups: tuple[SpanGroup, ...]
    query_of_slot: Tensor
    slot_of_query: Tensor
    unused_slots: Tensor
    key_of_slot: Tensor | None


@dataclass
class PackedSequences(PackedSeqParams):
    """``PackedSeqParams`` (thd) for Megatron-Core, with the lengths behind it and the plans made from them.

    ``lengths`` are those of all segments of the micro batch, before any split over ranks.
    """

    lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._plans: dict[tuple[int, int, int, torch.device], AttentionPlan] = {}

    def plan(self, *, cp_size: int, cp_rank: int, short: int, device: torch.device) -> AttentionPlan:
        """The plan of this rank; spans of up to ``short`` keys share groups. Made on the first call."""
        key = cp_size, cp_rank, short, device
        if key not in self._plans:
            self._plans[key] = make_plan(self.lengths, cp_size=cp_size, cp_rank=cp_rank, short=short, device=device)
        return self._plans[key]


def make_packed_sequences(lengths: tuple[int, ...], *, cp_size: int, device: torch.device | str) -> PackedSequences:
    """Describe joined rows of segments of these ``lengths``.

    Megatron-Core and TransformerEngine read what they know of it, this project's attention the rest.

    A segment's padding to a multiple of 2 x cp_size belongs to it: it comes last, no other position sees it, and it
    weighs nothing in the loss. So true and padded lengths are one, which TransformerEngine's kernels take fastest.
    """
    assert all(length > 0 and (cp_size == 1 or length % (2 * cp_size) == 0) for length in lengths), lengths
    borders = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32).to(device)
    longest = max(lengths)
    padded = borders if cp_size > 1 else None
    return PackedSequences(
        qkv_format="thd", cu_seqlens_q=borders, cu_seqlens_kv=borders, cu_seqlens_q_padded=padded,
        cu_seqlens_kv_padded=padded, max_seqlen_q=longest, max_seqlen_kv=longest, lengths=lengths,
    )  # fmt: skip


@functools.lru_cache(maxsize=4)
def equal_sequences(num_rows: int, length: int, *, cp_size: int, device: torch.device) -> PackedSequences:
    """Rows that are not packed, as segments: how context parallelism takes them."""
    return make_packed_sequences((length,) * num_rows, cp_size=cp_size, device=device)


def local_positions(lengths: tuple[int, ...], *, cp_size: int, cp_rank: int) -> NDArray[np.int64]:
    """Positions of the row that a rank holds, in its order there: [L]."""
    if cp_size == 1:
        return np.arange(sum(lengths))
    parts, start = [], 0
    for length in lengths:
        chunk = length // (2 * cp_size)
        for number in (cp_rank, 2 * cp_size - 1 - cp_rank):
            parts.append(np.arange(start + number * chunk, start + (number + 1) * chunk))
        start += length
    return np.concatenate(parts)


def make_plan(
    lengths: tuple[int, ...], *, cp_size: int, cp_rank: int, short: int, device: torch.device
) -> AttentionPlan:
    """Group the spans of a rank and lay out their slots. Spans of more than ``short`` keys share only with equals."""
    groups, queries, keys, used = [], [], [], []
    for spans in _grouped(_spans(lengths, cp_size=cp_size, cp_rank=cp_rank), short=short):
        num_queries, num_keys = max(span.num_queries for span in spans), spans[0].num_keys
        offsets = tuple(span.num_keys - span.num_queries for span in spans)
        groups.append(SpanGroup(len(spans), num_queries, num_keys, offsets))
        for span in spans:
            slots = np.arange(num_queries)
            queries.append(span.query + np.minimum(slots, span.num_queries - 1))
            used.append(slots < span.num_queries)
            keys.append(span.key + np.minimum(np.arange(num_keys), span.num_keys - 1))
    query_of_slot, is_used_U = np.concatenate(queries), np.concatenate(used)
    slot_of_query = np.empty(is_used_U.sum(), dtype=np.int64)
    slot_of_query[query_of_slot[is_used_U]] = np.flatnonzero(is_used_U)
    key_of_slot = None
    if cp_size > 1:
        # Where a position of the row stands when the ranks' parts are put one after the other.
        held = [local_positions(lengths, cp_size=cp_size, cp_rank=rank) for rank in range(cp_size)]
        key_of_slot = np.argsort(np.concatenate(held))[np.concatenate(keys)]
    return AttentionPlan(
        groups=tuple(groups),
        query_of_slot=torch.from_numpy(query_of_slot).to(device),
        slot_of_query=torch.from_numpy(slot_of_query).to(device),
        unused_slots=torch.from_numpy(np.flatnonzero(~is_used_U)).to(device),
        key_of_slot=None if key_of_slot is None else torch.from_numpy(key_of_slot).to(device),
    )


def _spans(lengths: tuple[int, ...], *, cp_size: int, cp_rank: int) -> list[Span]:
    starts = [0, *itertools.accumulate(lengths)]
    if cp_size == 1:
        return [Span(start, length, start, length) for start, length in zip(starts, lengths, strict=False)]
    spans = []
    for start, length in zip(starts, lengths, strict=False):
        chunk = length // (2 * cp_size)
        for place, number in enumerate((cp_rank, 2 * cp_size - 1 - cp_rank)):
            spans.append(Span(start // cp_size + place * chunk, chunk, start, (number + 1) * chunk))
    return spans


def _grouped(spans: list[Span], *, short: int) -> list[list[Span]]:
    """Spans that are computed together, longest first."""
    groups: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: (-span.num_keys, -span.num_queries, span.query)):
        if groups:
            first = groups[-1][0]
            lacking = first.num_keys - span.num_keys
            alike = (first.num_keys, first.num_queries) == (span.num_keys, span.num_queries)
            if alike or (first.num_keys <= short and lacking <= max(_FEW, _PADDING * first.num_keys)):
                groups[-1].append(span)
                continue
        groups.append([span])
    return groups
