"""Lets matrix products add weight gradients to the sums over micro batches.

Otherwise a product writes each gradient, and another kernel reads it and adds it to the sum: two more passes over
memory per weight and micro batch.

``TransformerConfig.gradient_accumulation_fusion`` would ask for apex's kernel in every model, because Megatron-Core's
output layer needs it. TransformerEngine's layers do without, so the layers are switched on one by one.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


def fuse_gradient_accumulation(chunks: Iterable[torch.nn.Module], *, has_apex_kernel: bool) -> None:
    """Switch it on in TransformerEngine's layers, and in Megatron-Core's own if apex's kernel is there.

    The sums are the ``main_grad`` that ``DistributedDataParallel`` gives each weight before the first backward pass.
    """
    for chunk in chunks:
        for module in chunk.modules():
            if hasattr(module, "fuse_wgrad_accumulation"):  # TransformerEngine's name
                module.fuse_wgrad_accumulation = True
            elif has_apex_kernel and hasattr(module, "gradient_accumulation_fusion"):  # Megatron-Core's
                module.gradient_accumulation_fusion = True
