"""Computes core attention without TransformerEngine: causal within segments, also under context parallelism.

The local layer spec uses it. Attention within packed sequences is computed segment by segment, several segments of
about the same length at a time; no score matrix of a full sequence is ever allocated. Under context parallelism the
keys and values of all ranks are gathered, and each rank computes its own queries.

A plan lists spans: consecutive queries and the keys from the segment's start to the last of these queries. Without
context parallelism a segment is one span, with it two. Short spans of about the same length are padded to one shape and
computed together. A plan depends on the lengths alone and is made once per micro batch.

Shape suffixes: S sequence, B micro batch or number of spans, N query heads of this rank, G key/value heads of this
rank, R query heads of one key head, D head dimension, Q queries and K keys of a span, L tokens of this rank, U slots of
padded queries, W slots of padded keys.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from megatron_ssd.runtime.packed_sequences import PackedSequences, equal_sequences, local_chunks, local_positions

_EXPLICIT_LENGTH = 512  # longest span whose scores are written out on a CPU
# How many keys a span may lack to share a group with a longer one: a share of the longest span, or a few.
_PADDING_SHARE, _PADDING_KEYS = 0.25, 8


@dataclass(frozen=True)
class Span:
    """Queries and the keys they attend to; the last query attends to all of the keys.

    ``query`` is the index of the first query among this rank's tokens, ``key`` that of the first key in the sequence.
    """

    query: int
    num_queries: int
    key: int
    num_keys: int


@dataclass(frozen=True)
class SpanGroup:
    """Spans computed as one batch of shape [count, num_queries] x [count, num_keys].

    Query i of a span attends to key j if j <= i + offset, with the span's own entry of ``offsets``. Padding is at the
    end, where no query attends to it.
    """

    count: int
    num_queries: int
    num_keys: int
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class AttentionPlan:
    """How tokens are copied to the slots of groups and back.

    Attributes:
        query_of_slot: [U], token of this rank that a query slot holds; an unused slot repeats another's.
        slot_of_query: [L], slot of each token of this rank, the inverse of it.
        unused_slots: numbers of the unused query slots.
        key_of_slot: [W], index of a key slot's token in the concatenated keys of all ranks; None without context
            parallelism, where key slots are query slots.
    """

    groups: tuple[SpanGroup, ...]
    query_of_slot: Tensor
    slot_of_query: Tensor
    unused_slots: Tensor
    key_of_slot: Tensor | None

    def to_slots(self, x_L: Tensor) -> Tensor:
        """Copy the tokens of this rank to the query slots, [U].

        The copies in unused slots get no gradient, because ``from_slots`` leaves them out.
        """
        x_U: Tensor = _Gather.apply(x_L, self.query_of_slot, self.slot_of_query, None)
        return x_U

    def from_slots(self, x_U: Tensor) -> Tensor:
        """Copy the query slots back to the tokens of this rank, [L]."""
        x_L: Tensor = _Gather.apply(x_U, self.slot_of_query, self.query_of_slot, self.unused_slots)
        return x_L


class SegmentAttention(torch.nn.Module):
    """Causal attention within segments, with the interface of Megatron-Core's ``DotProductAttention``.

    Megatron-Core's own class writes out the scores of every head and supports neither packed sequences nor context
    parallelism.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        pg_collection: Any = None,
        **unused: Any,
    ) -> None:
        super().__init__()
        assert not config.attention_dropout, "SSD trains without dropout"
        self.scale = softmax_scale if softmax_scale is not None else config.kv_channels**-0.5
        self.cp_size = config.context_parallel_size
        self.cp_group: Any = pg_collection.cp if pg_collection is not None else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSequences | None = None,
    ) -> Tensor:
        """Attend from each token to those before it in its sequence, or in its segment if sequences are packed.

        Args:
            query: [S, B, N, D], or [L, N, D] with ``packed_seq_params``; under context parallelism the tokens that
                this rank holds (see ``runtime.packed_sequences``). ``key`` and ``value`` are alike, with G heads.
            attention_mask: None; ``packed_seq_params`` describes the segments.

        Returns:
            [S, B, N * D], or [L, N * D].
        """
        assert attention_mask is None, "attention is causal within segments"
        if packed_seq_params is not None:
            return self._attend_segments(query, key, value, packed_seq_params)
        S, B = query.shape[:2]
        q_BSND, k_BSGD, v_BSGD = (x.transpose(0, 1) for x in (query, key, value))
        if self.cp_size == 1:
            context_BNSD = _attend(q_BSND, k_BSGD, v_BSGD, offsets=(0,), scale=self.scale)
            return context_BNSD.permute(2, 0, 1, 3).flatten(2)
        packed = equal_sequences(B, S * self.cp_size, cp_size=self.cp_size, device=query.device)
        context_LE = self._attend_segments(q_BSND.flatten(0, 1), k_BSGD.flatten(0, 1), v_BSGD.flatten(0, 1), packed)
        return context_LE.view(B, S, -1).transpose(0, 1).contiguous()

    def _attend_segments(self, q_LND: Tensor, k_LGD: Tensor, v_LGD: Tensor, packed: PackedSequences) -> Tensor:
        """[L, N * D]. Groups of spans are computed one after the other, each as one batch."""
        cp_rank = self.cp_group.rank() if self.cp_size > 1 else 0
        short = _EXPLICIT_LENGTH if q_LND.is_cpu else 0
        plan = make_plan(packed.lengths, cp_size=self.cp_size, cp_rank=cp_rank, short=short, device=q_LND.device)
        q_UND = plan.to_slots(q_LND)
        if plan.key_of_slot is None:
            k_WGD, v_WGD = plan.to_slots(k_LGD), plan.to_slots(v_LGD)
        else:
            gathered = gather_from_sequence_parallel_region(torch.cat([k_LGD, v_LGD], dim=-1), group=self.cp_group)
            k_WGD, v_WGD = gathered.index_select(0, plan.key_of_slot).chunk(2, dim=-1)
        q_sizes = [group.count * group.num_queries for group in plan.groups]
        k_sizes = [group.count * group.num_keys for group in plan.groups]
        parts = zip(plan.groups, q_UND.split(q_sizes), k_WGD.split(k_sizes), v_WGD.split(k_sizes), strict=True)
        contexts = []
        for group, q, k, v in parts:
            q_BQND = q.unflatten(0, (group.count, group.num_queries))
            k_BKGD, v_BKGD = (x.unflatten(0, (group.count, group.num_keys)) for x in (k, v))
            context_BNQD = _attend(q_BQND, k_BKGD, v_BKGD, offsets=group.offsets, scale=self.scale)
            contexts.append(context_BNQD.transpose(1, 2).flatten(2).flatten(0, 1))
        return plan.from_slots(torch.cat(contexts))


def _attend(q_BQND: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, *, offsets: tuple[int, ...], scale: float) -> Tensor:
    """[B, N, Q, D]. Query i attends to key j if j <= i + offset; ``offsets`` has one entry per batch item, or one."""
    Q, K = q_BQND.shape[1], k_BKGD.shape[1]
    if len(set(offsets)) == 1:
        offsets = offsets[:1]
    if q_BQND.is_cpu and K <= _EXPLICIT_LENGTH:
        return _explicit_attention(q_BQND, k_BKGD, v_BKGD, _causal_mask(Q, K, offsets, q_BQND.dtype), scale)
    assert offsets == (K - Q,), "long spans share a group only with spans of the same shape"
    return _fused_attention(q_BQND, k_BKGD, v_BKGD, scale)


def _fused_attention(q_BQND: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, scale: float) -> Tensor:
    """PyTorch's kernel, which never stores all scores. The last query attends to the last key."""
    Q, K = q_BQND.shape[1], k_BKGD.shape[1]
    return F.scaled_dot_product_attention(
        q_BQND.transpose(1, 2),
        k_BKGD.transpose(1, 2),
        v_BKGD.transpose(1, 2),
        attn_mask=None if Q == K else causal_lower_right(Q, K),
        is_causal=Q == K,
        scale=scale,
        enable_gqa=q_BQND.shape[2] != k_BKGD.shape[2],
    )


def _explicit_attention(q_BQND: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention with scores written out, for short spans on a CPU.

    With bf16 matrix products this is three times as fast there as the fused kernel. The R = N / G query heads of a key
    head are stacked, so that each key head takes one product.
    """
    B, Q, N, D = q_BQND.shape
    K, G = k_BKGD.shape[1:3]
    R = N // G
    q_BGMD = (q_BQND * scale).view(B, Q, G, R, D).permute(0, 2, 3, 1, 4).reshape(B, G, R * Q, D)
    # Not add_: for an in-place change of a view, autograd copies all of the base in the backward pass.
    scores_BGRQK = torch.matmul(q_BGMD, k_BKGD.permute(0, 2, 3, 1)).view(B, G, R, Q, K) + mask
    weights_BGMK = torch.softmax(scores_BGRQK, dim=-1).view(B, G, R * Q, K)
    return torch.matmul(weights_BGMK, v_BKGD.permute(0, 2, 1, 3)).view(B, N, Q, D)


@functools.lru_cache(maxsize=16)
def _causal_mask(num_queries: int, num_keys: int, offsets: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Mask to add to scores: [Q, K] for one offset, else [B, 1, 1, Q, K]."""
    last_seen = torch.arange(num_queries) + torch.tensor(offsets)[:, None]
    hidden = torch.arange(num_keys) > last_seen[:, None, None, :, None]
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
    return mask[0, 0, 0] if len(offsets) == 1 else mask


class _Gather(torch.autograd.Function):
    """Copies the rows of ``x`` that ``index`` names; ``back`` names those of the gradient to copy to each row of ``x``.

    So the backward pass is a copy too, ten times as fast as the scatter-add of PyTorch's own backward. The gradient of
    the ``unused`` rows of ``x`` is zero, because no row of the output was copied from them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor, unused: Tensor | None) -> Tensor:
        ctx.back, ctx.unused = back, unused
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        grad = grads[0].index_select(0, ctx.back)
        return grad if ctx.unused is None else grad.index_fill_(0, ctx.unused, 0.0), None, None, None


@functools.lru_cache(maxsize=16)
def make_plan(
    lengths: tuple[int, ...], *, cp_size: int, cp_rank: int, short: int, device: torch.device
) -> AttentionPlan:
    """Group the spans of a rank and assign their slots. All layers of a micro batch share the cached plan.

    Args:
        lengths: of all segments of the sequence.
        short: spans of up to this many keys may share a group with slightly longer ones.
    """
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
        # Index of each token of the sequence in the concatenated parts of the ranks.
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
        for index, number in enumerate(local_chunks(cp_size, cp_rank)):
            spans.append(Span(start // cp_size + index * chunk, chunk, start, (number + 1) * chunk))
    return spans


def _grouped(spans: list[Span], *, short: int) -> list[list[Span]]:
    """Spans that are computed together, longest first. Long spans share a group only with spans of the same shape."""
    groups: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: (-span.num_keys, -span.num_queries, span.query)):
        if groups:
            first = groups[-1][0]
            lacking = first.num_keys - span.num_keys
            alike = (first.num_keys, first.num_queries) == (span.num_keys, span.num_queries)
            if alike or (first.num_keys <= short and lacking <= max(_PADDING_KEYS, _PADDING_SHARE * first.num_keys)):
                groups[-1].append(span)
                continue
        groups.append([span])
    return groups
