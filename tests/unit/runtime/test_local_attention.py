"""Tests for attention within segments on the CPU."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ssd.runtime import local_attention as attention
from megatron_ssd.runtime.local_attention import (
    SegmentAttention,
    _attend,
    _explicit_attention,
    _fused_attention,
    make_plan,
)
from megatron_ssd.runtime.packed_sequences import (
    equal_sequences,
    local_positions,
    make_packed_sequences,
    segment_positions,
)

CPU = torch.device("cpu")
N, G, D = 4, 2, 8
SCALE = D**-0.5


def test_the_example_in_the_docstring() -> None:
    held = [local_positions((8, 4), cp_size=2, cp_rank=rank).tolist() for rank in range(2)]
    assert held == [[0, 1, 6, 7, 8, 11], [2, 3, 4, 5, 9, 10]]
    within = [segment_positions((8, 4), cp_size=2, cp_rank=rank).tolist() for rank in range(2)]
    assert within == [[0, 1, 6, 7, 0, 3], [2, 3, 4, 5, 1, 2]]


def test_packed_seq_params_for_megatron_core() -> None:
    packed = make_packed_sequences((3, 1, 2), cp_size=1, device="cpu")
    assert packed.qkv_format == "thd"
    assert packed.cu_seqlens_q.tolist() == packed.cu_seqlens_kv.tolist() == [0, 3, 4, 6]
    assert packed.cu_seqlens_q.dtype == torch.int32
    assert packed.max_seqlen_q == packed.max_seqlen_kv == 3
    assert packed.cu_seqlens_q_padded is None
    split = make_packed_sequences((8, 4), cp_size=2, device="cpu")
    assert split.cu_seqlens_q_padded.tolist() == split.cu_seqlens_kv_padded.tolist() == [0, 8, 12]


@settings(max_examples=60)
@given(
    parts=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    cp_size=st.sampled_from([1, 2, 3]),
    short=st.sampled_from([0, 20, 1000]),
)
def test_each_query_has_one_slot_and_attends_to_the_keys_up_to_itself(
    parts: list[int], cp_size: int, short: int
) -> None:
    lengths = tuple(part * (2 * cp_size if cp_size > 1 else 1) for part in parts)
    start_of = np.repeat([0, *itertools.accumulate(lengths)][:-1], lengths)
    gathered = np.concatenate([local_positions(lengths, cp_size=cp_size, cp_rank=rank) for rank in range(cp_size)])
    assert sorted(gathered.tolist()) == list(range(sum(lengths)))
    for rank in range(cp_size):
        held = local_positions(lengths, cp_size=cp_size, cp_rank=rank)
        plan = make_plan(lengths, cp_size=cp_size, cp_rank=rank, short=short, device=CPU)
        queries = plan.query_of_slot
        keys = torch.from_numpy(held)[queries] if plan.key_of_slot is None else plan.key_of_slot
        assert queries[plan.slot_of_query].tolist() == list(range(len(held)))
        assert sorted([*plan.slot_of_query.tolist(), *plan.unused_slots.tolist()]) == list(range(len(queries)))
        used, query, key = set(plan.slot_of_query.tolist()), 0, 0
        for group in plan.groups:
            for offset in group.offsets:
                for i in range(group.num_queries):
                    seen = keys[key : key + min(i + offset + 1, group.num_keys)]
                    positions = seen if plan.key_of_slot is None else torch.from_numpy(gathered)[seen]
                    position = int(held[queries[query + i]])
                    if query + i in used:
                        assert positions.tolist() == list(range(start_of[position], position + 1))
                query, key = query + group.num_queries, key + group.num_keys
        assert (query, key) == (len(queries), len(keys))


def test_long_spans_share_a_group_only_with_spans_of_equal_length() -> None:
    plan = make_plan((100, 99, 100, 7, 5), cp_size=1, cp_rank=0, short=10, device=CPU)
    assert [(group.count, group.num_queries) for group in plan.groups] == [(2, 100), (1, 99), (2, 7)]
    assert len(plan.unused_slots) == 2


def qkv(length: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((length, N, D), (length, G, D), (length, G, D))
    return [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    """Attention with a mask over the full sequence and repeated heads, [T, N * D]."""
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    seen = (segment[:, None] == segment) & torch.ones(len(q), len(q), dtype=torch.bool).tril()
    k, v = (x.repeat_interleave(N // G, dim=1) for x in (k, v))
    scores = torch.einsum("qnd,knd->nqk", q, k) * SCALE
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("nqk,knd->qnd", weights, v).flatten(1)


def module() -> SegmentAttention:
    from types import SimpleNamespace

    config = SimpleNamespace(attention_dropout=0.0, kv_channels=D, context_parallel_size=1)
    return SegmentAttention(config, 1, None, "self")


@pytest.mark.parametrize("explicit_length", [512, 6, 0])
@pytest.mark.parametrize(
    ("lengths", "num_sequences"), [((24,), 1), ((5, 12, 7), 2), ((1, 1, 3, 3, 8, 8), 3), (tuple(range(1, 20)), 1)]
)
def test_packed_attention_equals_masked_attention_forward_and_backward(
    monkeypatch: pytest.MonkeyPatch,
    lengths: tuple[int, ...],
    num_sequences: int,
    explicit_length: int,
) -> None:
    monkeypatch.setattr(attention, "_EXPLICIT_LENGTH", explicit_length)
    packed = make_packed_sequences(lengths * num_sequences, cp_size=1, device="cpu")
    lengths = lengths * num_sequences
    results = []
    for attend in (lambda *x: module()(*x, None, packed_seq_params=packed), lambda *x: reference(*x, lengths)):
        leaves = qkv(sum(lengths))
        context = attend(*leaves)
        context.square().sum().backward()
        results.append([context, *(x.grad for x in leaves)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("explicit_length", [512, 0])
def test_each_unpacked_sequence_is_one_segment(monkeypatch: pytest.MonkeyPatch, explicit_length: int) -> None:
    monkeypatch.setattr(attention, "_EXPLICIT_LENGTH", explicit_length)
    S, B = 10, 3
    flat = qkv(B * S)
    inputs = [x.detach().view(B, S, -1, D).transpose(0, 1) for x in flat]
    context_SBE = module()(*inputs, None)
    assert context_SBE.shape == (S, B, N * D)
    expected = reference(*flat, (S,) * B).view(B, S, -1).transpose(0, 1)
    torch.testing.assert_close(context_SBE, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(6, 6), (3, 9)])
def test_explicit_and_fused_attention_agree(num_queries: int, num_keys: int) -> None:
    q, k, v = (x.detach()[None] for x in qkv(num_keys))
    q = q[:, -num_queries:]
    mask = attention._causal_mask(num_queries, num_keys, (num_keys - num_queries,), torch.float64)
    torch.testing.assert_close(
        _explicit_attention(q, k, v, mask, SCALE), _fused_attention(q, k, v, SCALE), rtol=1e-9, atol=1e-9
    )


def test_the_causal_mask() -> None:
    assert (attention._causal_mask(2, 3, (1,), torch.float32) == 0).int().tolist() == [[1, 1, 0], [1, 1, 1]]
    both = attention._causal_mask(2, 3, (0, 1), torch.float32)
    assert (both[:, 0, 0] == 0).int().tolist() == [[[1, 0, 0], [1, 1, 0]], [[1, 1, 0], [1, 1, 1]]]


def test_other_segments_do_not_change_the_result() -> None:
    lengths = (5, 12, 7)
    inputs = [x.detach().float() for x in qkv(24)]
    packed = make_packed_sequences(lengths, cp_size=1, device="cpu")
    first = module()(*inputs, None, packed_seq_params=packed)
    for x in inputs:
        x[:5] += 1
        x[17:] -= 1
    second = module()(*inputs, None, packed_seq_params=packed)
    assert torch.equal(first[5:17], second[5:17])
    assert not torch.equal(first[:5], second[:5])


def test_layers_share_one_plan() -> None:
    plans = [make_plan((5, 7), cp_size=1, cp_rank=0, short=512, device=CPU) for _ in range(2)]
    assert plans[0] is plans[1]
    assert equal_sequences(2, 8, cp_size=2, device=CPU) is equal_sequences(2, 8, cp_size=2, device=CPU)


def test_a_padded_group_and_single_spans_agree() -> None:
    q, k, v = (x.detach() for x in qkv(12))
    together = _attend(q[None], k[None], v[None], offsets=(0,), scale=SCALE)
    chunks = [(0, 4), (4, 12)]
    apart = [_attend(q[None, a:b], k[None, :b], v[None, :b], offsets=(a,), scale=SCALE) for a, b in chunks]
    torch.testing.assert_close(torch.cat(apart, dim=2), together, rtol=1e-9, atol=1e-9)
