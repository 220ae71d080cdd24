"""Tests that the CPU rotary embedding equals Megatron-Core's, forward and backward."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from megatron_ssd.config.cluster import ClusterConfig
from megatron_ssd.runtime.device import prepare_device
from tests.helpers.devices import NEEDS_NO_GPU

if torch.cuda.is_available():
    pytest.skip(NEEDS_NO_GPU, allow_module_level=True)
prepare_device(ClusterConfig(device="cpu"))

from megatron.core.models.common.embeddings import rope_utils  # noqa: E402

from megatron_ssd.runtime import local_rotary  # noqa: E402

CONFIG = SimpleNamespace(rotary_interleaved=False, multi_latent_attention=False, apply_rope_fusion=False)
D = 8


def angles(length: int) -> Tensor:
    """Rotation angles of a sequence, [S, 1, 1, D]."""
    half = torch.outer(torch.arange(length).float(), torch.tensor([1.0, 0.3, 0.1, 0.03]))
    return torch.cat([half, half], dim=-1)[:, None, None, :]


def group(size: int, rank: int) -> SimpleNamespace:
    return SimpleNamespace(size=lambda: size, rank=lambda: rank)


def both(t: Tensor, freqs: Tensor, **options: object) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(output, gradient) of this project's function and of Megatron-Core's."""
    results = []
    for function in (local_rotary.apply_rotary_pos_emb, rope_utils.apply_rotary_pos_emb):
        leaf = t.clone().requires_grad_()
        out = function(leaf, freqs, CONFIG, **options)
        (grad,) = torch.autograd.grad(out, leaf, torch.ones_like(out) + t)
        results.append((out.detach(), grad))
    return results[0], results[1]


def test_an_unpacked_sequence() -> None:
    ours, theirs = both(torch.randn(12, 2, 3, D), angles(12), cp_group=group(1, 0))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@given(parts=st.lists(st.integers(1, 5), min_size=1, max_size=6), cp_size=st.sampled_from([1, 2, 4]))
def test_packed_sequences_on_every_context_parallel_rank(parts: list[int], cp_size: int) -> None:
    lengths = torch.tensor(parts) * 2 * cp_size
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    freqs = angles(int(lengths.max()))
    for rank in range(cp_size):
        t = torch.randn(int(lengths.sum()) // cp_size, 2, D)
        ours, theirs = both(t, freqs, cu_seqlens=cu_seqlens.clone(), cp_group=group(cp_size, rank))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_the_function_replaces_megatron_cores() -> None:
    from megatron.core.transformer import attention

    assert attention.apply_rotary_pos_emb is local_rotary.apply_rotary_pos_emb
