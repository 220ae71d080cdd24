"""Lets matrix products add weight gradients to the sums over micro batches.

Otherwise a product writes each gradient, and another kernel reads it and adds it to the sum: two more passes over
memory per weight and micro batch.

``TransformerConfig.gradient_accumulation_fusion`` would ask for apex's kernel in every model, because Megatron-Core's
output layer needs it. TransformerEngine's layers do without, so the layers are switched on one by one.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

# Attributes of layers.
_TRANSFORMER_ENGINE = "fuse_wgrad_accumulation"
_MEGATRON = "gradient_accumulation_fusion"


def fuse_gradient_accumulation(chunks: Iterable[torch.nn.Module], *, has_apex_kernel: bool) -> None:
    """Switch it on in TransformerEngine's layers, and in Megatron-Core's own if apex's kernel is there.

    The sums are the ``main_grad`` that ``DistributedDataParallel`` gives each weight before the first backward pass.
    """
    switches = (_TRANSFORMER_ENGINE, _MEGATRON) if has_apex_kernel else (_TRANSFORMER_ENGINE,)
    for chunk in chunks:
        for module in chunk.modules():
            for switch in switches:
                if hasattr(module, switch):
                    setattr(module, switch, True)
