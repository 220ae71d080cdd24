"""How a mixture of experts is trained; its shape is in ``ModelConfig``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_ssd.errors import require


@dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """Routing and token exchange. No token is ever dropped.

    ``dispatcher=flex`` is DeepEP's exchange, which needs its CUDA library; ``allgather`` and ``alltoall`` run anywhere.

    SSD's loss is cross-entropy alone, so ``aux_loss_coeff`` is 0 and nothing pushes the experts towards equal load.
    Above 0 the load-balancing loss of the Switch Transformer (arXiv 2101.03961, eq. 4) is added: ``aux_loss_coeff``
    times its mean over micro batches, summed over layers, whatever normalises the cross-entropy. Prompts and padding
    count in it as responses do. ``freeze_router`` keeps the routing weights as the base has them.
    """

    router_dtype: Literal["fp32", "fp64"] = "fp32"
    aux_loss_coeff: float = 0.0
    freeze_router: bool = False
    dispatcher: Literal["alltoall", "allgather", "flex"] = "alltoall"
    grouped_gemm: bool = True  # all experts of a rank in one kernel, where TransformerEngine's layers run

    def __post_init__(self) -> None:
        require(
            self.aux_loss_coeff == 0 or not self.freeze_router,
            f"moe.aux_loss_coeff = {self.aux_loss_coeff}",
            rule="balances the load by training the router, and moe.freeze_router = true",
            fix="set one of the two back",
        )
        require(self.aux_loss_coeff >= 0, f"moe.aux_loss_coeff = {self.aux_loss_coeff}", rule="must not be negative",
                fix="0 leaves the auxiliary loss out")  # fmt: skip
        require(
            self.dispatcher != "flex" or self.router_dtype == "fp32",
            f"moe.router_dtype = {self.router_dtype}",
            rule="DeepEP's exchange (moe.dispatcher = flex) carries probabilities in fp32",
            fix="set moe.router_dtype=fp32 or moe.dispatcher=alltoall",
        )
