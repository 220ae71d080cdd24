"""The two forms of attention agree with each other and with separate rows; the norm agrees with PyTorch's."""

import pytest
import torch
import torch.nn.functional as F

from megatron_ssd.models.attention import _explicit_attention, _fused_attention
from megatron_ssd.models.norm import _FewPassesRMSNorm
from megatron_ssd.training.data import segment_mask

S, B, N, G, D = 24, 3, 4, 2, 8
SCALE = D**-0.5


def inputs(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((S, B, N, D), (S, B, G, D), (S, B, G, D))
    return [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("packed", [False, True])
def test_explicit_and_fused_attention_agree_forward_and_backward(packed: bool) -> None:
    segments = torch.arange(S).div(7, rounding_mode="floor").expand(B, S)
    mask = segment_mask(segments, torch.float64) if packed else None
    results = []
    for attend in (_explicit_attention, _fused_attention):
        qkv = inputs()
        context = attend(*qkv, mask, SCALE)
        context.square().sum().backward()
        results.append([context, *(x.grad for x in qkv)])
    for explicit, fused in zip(*results, strict=True):
        torch.testing.assert_close(explicit, fused, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("attend", [_explicit_attention, _fused_attention])
def test_a_packed_row_is_its_segments_apart(attend) -> None:  # type: ignore[no-untyped-def]
    q, k, v = (x.detach() for x in inputs())
    lengths = (5, 12, 7)
    segments = torch.repeat_interleave(torch.tensor([1, 2, 0]), torch.tensor(lengths)).expand(B, S)
    packed = attend(q, k, v, segment_mask(segments, torch.float64), SCALE)
    parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    apart = torch.cat([attend(*part, None, SCALE) for part in parts])
    torch.testing.assert_close(packed, apart, rtol=1e-9, atol=1e-9)


def test_segment_mask_by_hand() -> None:
    mask = segment_mask(torch.tensor([[1, 1, 2, 0]]), torch.float32)
    assert mask.shape == (1, 1, 4, 4)
    seen = (mask[0, 0] == 0).int().tolist()
    assert seen == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert torch.isneginf(mask[0, 0][~(mask[0, 0] == 0)]).all()


def test_norm_is_pytorchs_forward_and_backward() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 16, generator=generator)
    g = torch.randn(5, 3, 16, generator=generator)
    weight = torch.rand(16, generator=generator) + 0.5
    results = []
    for norm in (lambda x, w: _FewPassesRMSNorm.apply(x, w, 1e-6), lambda x, w: F.rms_norm(x, (16,), w, 1e-6)):
        leaf, scale = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = norm(leaf, scale)
        y.backward(g)
        results.append((y, leaf.grad, scale.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)
