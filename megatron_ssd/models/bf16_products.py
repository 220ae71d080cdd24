"""Computes the layers' products in bf16 on processors that PyTorch itself does not make faster.

With ``precision.fast_matmul`` PyTorch may round the inputs of fp32 products to bf16. oneDNN does so with AMX only. A
processor that has AVX-512's bf16 instructions without AMX computes such a product in fp32, in twice the time that it
needs for bf16 tensors. There the inputs are converted here, and the result, which torch then rounds to bf16 as well,
back to fp32. The output layer is left out: rounding its logits would change the loss most.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from torch import Tensor


def round_products(chunks: Sequence[GPTModel]) -> None:
    """Compute the products of all transformer layers with bf16 tensors. Weights and activations stay fp32."""
    for chunk in chunks:
        for module in chunk.decoder.modules():
            if isinstance(module, ColumnParallelLinear | RowParallelLinear):
                module._forward_impl = functools.partial(_product, module._forward_impl)


def needs_rounded_products() -> bool:
    """Whether this processor has bf16 instructions that PyTorch does not use for fp32 tensors."""
    return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


def _product(
    exact: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None, **settings: Any
) -> Tensor:
    """``exact``, Megatron-Core's product, of the rounded tensors."""
    output = exact(input=input.bfloat16(), weight=weight.bfloat16(), bias=None, **settings).float()
    return output if bias is None else output + bias
