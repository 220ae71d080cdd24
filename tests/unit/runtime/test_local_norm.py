"""Tests that the CPU norm equals PyTorch's."""

import torch
import torch.nn.functional as F

from megatron_ssd.runtime.local_norm import _FewPassesRMSNorm


def test_the_norm_equals_pytorchs_forward_and_backward() -> None:
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
