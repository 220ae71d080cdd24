"""Controls how the routers of a mixture of experts are trained.

Padding tokens are routed like others, because every token needs experts, but they count neither in the auxiliary loss
nor in the load of the experts. Megatron-Core's routers take the mask of padding for this.

Shape suffixes: B micro batch, S sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor
from typing_extensions import override

# The router reads this name, and Megatron-Core 0.16 does not define it without TransformerEngine.
if not hasattr(moe_utils, "te_general_gemm"):
    moe_utils.te_general_gemm = None


class Router(TopKRouter):
    """Megatron-Core's router, with the auxiliary loss of each micro batch added as it is.

    With ``calculate_per_token_loss`` Megatron-Core multiplies it by the number of tokens of this rank, which differs
    between ranks where one of them holds more padding.
    """

    @override
    def attach_and_log_load_balancing_loss(
        self, activation: Tensor, aux_loss_coeff: float, aux_loss: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """``activation``, whose backward pass also computes the gradient of ``aux_loss``. Nothing is logged."""
        attached: Tensor = MoEAuxLossAutoScaler.apply(activation, aux_loss)
        return attached


def routers(chunks: Iterable[torch.nn.Module]) -> Iterator[Router]:
    """This rank's routers in layer order; none for a dense model."""
    for chunk in chunks:
        yield from (module for module in chunk.modules() if isinstance(module, Router))


def freeze_routers(chunks: Iterable[torch.nn.Module]) -> None:
    """Exclude the routing weights from training. They are still loaded, saved and exported."""
    for router in routers(chunks):
        router.weight.requires_grad_(False)


def set_aux_loss_coefficient(chunks: Iterable[torch.nn.Module], coefficient: float) -> None:
    """Weight the auxiliary losses of the next micro batches, before the gradient is divided, with ``coefficient``.

    The router reads the coefficient in every forward pass.
    """
    for router in routers(chunks):
        router.config.moe_aux_loss_coeff = coefficient


def router_padding_mask(padding_mask_BS: Tensor, model: GPTModel) -> Tensor | None:
    """The mask of padding as the forward pass of ``model`` takes it; None for a dense model.

    ``GPTModel`` splits the mask over sequence-parallel ranks together with the embeddings, which only the first
    pipeline stage has. The other stages need their rank's part.

    Args:
        padding_mask_BS: true for padding, of this context-parallel rank.
        model: this rank's chunk of the model.
    """
    if not model.config.num_moe_experts:
        return None
    if model.pre_process or not model.config.sequence_parallel:
        return padding_mask_BS
    rank: int = parallel_state.get_tensor_model_parallel_rank()
    parts: tuple[Tensor, ...] = padding_mask_BS.chunk(parallel_state.get_tensor_model_parallel_world_size(), dim=1)
    return parts[rank]
