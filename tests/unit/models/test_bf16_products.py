"""Tests products in bf16 on processors without AMX."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.models import bf16_products, build
from megatron_ssd.models.build import build_model
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import process_groups
from tests.helpers.training_run import CPU, DENSE, EXACT, MOE

ONE = ParallelConfig()
FAST = dataclasses.replace(EXACT, fast_matmul=True)
TOKENS = torch.arange(32)[None] % 50


def losses_and_gradients(
    monkeypatch: pytest.MonkeyPatch, *models: ModelConfig, rounded: bool
) -> list[tuple[float, dict[str, Any]]]:
    """(loss, gradients by name) of each model on one sequence."""
    monkeypatch.setattr(build, "needs_rounded_products", lambda: rounded)
    found = []
    with process_groups(ONE, device=prepare_device(CPU, FAST)):
        for model in models:
            (chunk,) = build_model(model, ONE, FAST, device="cpu", seed=0)
            loss = chunk(TOKENS, torch.arange(32)[None], None, labels=TOKENS.roll(-1, 1)).mean()
            loss.backward()
            found.append((loss.item(), {name: weight.grad for name, weight in chunk.named_parameters()}))
    return found


def test_gradients_are_those_of_fp32_except_for_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)  # the other side is exact
    exact = losses_and_gradients(monkeypatch, DENSE, MOE, rounded=False)
    rounded = losses_and_gradients(monkeypatch, DENSE, MOE, rounded=True)
    for (loss, gradients), (other_loss, others) in zip(exact, rounded, strict=True):
        assert other_loss != loss
        assert other_loss == pytest.approx(loss, rel=1e-3)
        for name, gradient in gradients.items():
            assert others[name].dtype == torch.float32
            assert (others[name] - gradient).norm() < 0.05 * gradient.norm(), name


def test_a_product_is_that_of_bf16_tensors_with_the_bias_in_fp32() -> None:
    x, weight, bias = torch.randn(8, 16), torch.randn(4, 16, requires_grad=True), torch.randn(4)

    def exact(*, input: torch.Tensor, weight: torch.Tensor, bias: None) -> torch.Tensor:
        assert bias is None
        return input @ weight.t()

    output = bf16_products._product(exact, x, weight, bias)
    assert torch.equal(output, (x.bfloat16() @ weight.bfloat16().t()).float() + bias)
    output.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_only_layers_of_fast_products_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "needs_rounded_products", lambda: True)
    with process_groups(ONE, device=prepare_device(CPU)):
        (fast,) = build_model(DENSE, ONE, FAST, device="cpu", seed=0)
        (exact,) = build_model(DENSE, ONE, EXACT, device="cpu", seed=0)
    changed = {name for name, module in fast.named_modules() if "_forward_impl" in vars(module)}
    assert len(changed) == 4 * DENSE.num_hidden_layers
    assert all(name.startswith("decoder.layers.") for name in changed)
    assert not any("_forward_impl" in vars(module) for module in exact.modules())


@pytest.mark.parametrize(("bf16", "amx", "expected"), [(True, False, True), (True, True, False), (False, False, False)])
def test_processors_with_bf16_instructions_but_without_amx(
    bf16: bool, amx: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert bf16_products.needs_rounded_products() is expected
