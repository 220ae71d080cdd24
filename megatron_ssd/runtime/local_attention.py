"""Core attention for the local layer spec: causal, packed rows and context parallelism included.

Attention within a packed row is computed segment by segment, several of about the same length at a time
(``runtime.packed_sequences``). Under context parallelism the keys and values of all ranks are gathered, and each rank
computes its own queries.

Shape suffixes: S sequence, B micro batch or number of spans, N query heads of this rank, G key/value heads of this
rank, R query heads of one key head, D head dimension, Q queries and K keys of a span, L positions of this rank.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from megatron_ssd.runtime.packed_sequences import AttentionPlan, PackedSequences, SpanGroup, equal_sequences

_EXPLICIT_LENGTH = 512  # longest span whose scores are written out on a CPU


class SegmentAttention(torch.nn.Module):
    """Causal attention within segments, with the interface of Megatron-Core's ``DotProductAttention``.

    Megatron-Core's own writes out the scores of every head and knows neither packed rows nor context parallelism.
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
        """Attend, each position to those before it in its row, or in its segment where rows are packed.

        Args:
            query: [S, B, N, D], or [L, N, D] with ``packed_seq_params``; under context parallelism the positions that
                this rank holds (see ``runtime.packed_sequences``). ``key`` and ``value`` are alike, with G heads.
            attention_mask: None; segments are what ``packed_seq_params`` says.

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
        rows = equal_sequences(B, S * self.cp_size, cp_size=self.cp_size, device=query.device)
        context_LE = self._attend_segments(q_BSND.flatten(0, 1), k_BSGD.flatten(0, 1), v_BSGD.flatten(0, 1), rows)
        return context_LE.view(B, S, -1).transpose(0, 1).contiguous()

    def _attend_segments(self, q_LND: Tensor, k_LGD: Tensor, v_LGD: Tensor, rows: PackedSequences) -> Tensor:
        """[L, N * D]. Groups of spans are computed one after the other, each as one batch."""
        cp_rank = self.cp_group.rank() if self.cp_size > 1 else 0
        short = _EXPLICIT_LENGTH if q_LND.is_cpu else 0
        plan = rows.plan(cp_size=self.cp_size, cp_rank=cp_rank, short=short, device=q_LND.device)
        q_UND, k_WGD, v_WGD = self._to_slots(q_LND, k_LGD, v_LGD, plan)
        q_sizes = [group.count * group.num_queries for group in plan.groups]
        k_sizes = [group.count * group.num_keys for group in plan.groups]
        contexts = [
            _attend_group(group, q, k, v, scale=self.scale)
            for group, q, k, v in zip(
                plan.groups, q_UND.split(q_sizes), k_WGD.split(k_sizes), v_WGD.split(k_sizes), strict=True
            )
        ]
        context_LE: Tensor = _FromSlots.apply(torch.cat(contexts), plan)
        return context_LE

    def _to_slots(
        self, q_LND: Tensor, k_LGD: Tensor, v_LGD: Tensor, plan: AttentionPlan
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of this rank and keys of all ranks, where the groups of ``plan`` want them."""
        if plan.key_of_slot is None:
            q, k, v = (_ToSlots.apply(x, plan) for x in (q_LND, k_LGD, v_LGD))
            return q, k, v
        gathered = gather_from_sequence_parallel_region(torch.cat([k_LGD, v_LGD], dim=-1), group=self.cp_group)
        k_WGD, v_WGD = gathered.index_select(0, plan.key_of_slot).chunk(2, dim=-1)
        return _ToSlots.apply(q_LND, plan), k_WGD, v_WGD


def _attend_group(group: SpanGroup, q_UND: Tensor, k_WGD: Tensor, v_WGD: Tensor, *, scale: float) -> Tensor:
    """[U, N * D] of the slots of one group."""
    q_BQND = q_UND.unflatten(0, (group.count, group.num_queries))
    k_BKGD, v_BKGD = (x.unflatten(0, (group.count, group.num_keys)) for x in (k_WGD, v_WGD))
    return _attend(q_BQND, k_BKGD, v_BKGD, offsets=group.offsets, scale=scale).transpose(1, 2).flatten(2).flatten(0, 1)


def _attend(q_BQND: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, *, offsets: tuple[int, ...], scale: float) -> Tensor:
    """[B, N, Q, D]. Query i sees key j where j <= i + offset; ``offsets`` are one for each of B, or one for all."""
    Q, K = q_BQND.shape[1], k_BKGD.shape[1]
    if len(set(offsets)) == 1:
        offsets = offsets[:1]
    if q_BQND.is_cpu and K <= _EXPLICIT_LENGTH:
        return _explicit_attention(q_BQND, k_BKGD, v_BKGD, _causal_mask(Q, K, offsets, q_BQND.dtype), scale)
    assert offsets == (K - Q,), "long spans share a group with their equals only"
    return _fused_attention(q_BQND, k_BKGD, v_BKGD, scale)


def _fused_attention(q_BQND: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, scale: float) -> Tensor:
    """PyTorch's kernel: the scores never exist as a whole. The last query sees the last key."""
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
    """Scores written out, for short spans on a CPU, where bf16 matrix products outrun the fused kernel three times.

    The R = N / G query heads of a key head are put one below the other, so that each key head takes one product.
    """
    B, Q, N, D = q_BQND.shape
    K, G = k_BKGD.shape[1:3]
    R = N // G
    q_BGMD = (q_BQND * scale).view(B, Q, G, R, D).permute(0, 2, 3, 1, 4).reshape(B, G, R * Q, D)
    # Not add_: in place on a view, autograd would copy the whole of it in the backward pass.
    scores_BGRQK = torch.matmul(q_BGMD, k_BKGD.permute(0, 2, 3, 1)).view(B, G, R, Q, K) + mask
    weights_BGMK = torch.softmax(scores_BGRQK, dim=-1).view(B, G, R * Q, K)
    return torch.matmul(weights_BGMK, v_BKGD.permute(0, 2, 1, 3)).view(B, N, Q, D)


@functools.lru_cache(maxsize=16)
def _causal_mask(num_queries: int, num_keys: int, offsets: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """To add to scores: [Q, K] where there is one offset, else [B, 1, 1, Q, K]."""
    last_seen = torch.arange(num_queries) + torch.tensor(offsets)[:, None]
    hidden = torch.arange(num_keys) > last_seen[:, None, None, :, None]
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
    return mask[0, 0, 0] if len(offsets) == 1 else mask


class _ToSlots(torch.autograd.Function):
    """Positions to query slots. PyTorch's own backward adds row by row, ten times slower than taking rows back.

    Unused slots repeat a position and their gradient is zero: nothing that is used comes from them.
    """

    @staticmethod
    def forward(ctx: Any, x_L: Tensor, plan: AttentionPlan) -> Tensor:
        ctx.plan = plan
        return x_L.index_select(0, plan.query_of_slot)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.plan.slot_of_query), None


class _FromSlots(torch.autograd.Function):
    """Query slots back to positions."""

    @staticmethod
    def forward(ctx: Any, x_U: Tensor, plan: AttentionPlan) -> Tensor:
        ctx.plan = plan
        return x_U.index_select(0, plan.slot_of_query)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad_U = grads[0].index_select(0, ctx.plan.query_of_slot)
        return grad_U.index_fill_(0, ctx.plan.unused_slots, 0.0), None
