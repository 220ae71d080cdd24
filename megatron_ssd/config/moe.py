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
    """

    router_dtype: Literal["fp32", "fp64"] = "fp32"
    aux_loss_coeff: float = 0.0
    freeze_router: bool = False
    dispatcher: Literal["alltoall", "allgather", "flex"] = "alltoall"
    grouped_gemm: bool = True  # all experts of a rank in one kernel, where TransformerEngine's layers run

    def __post_init__(self) -> None:
        require(self.aux_loss_coeff >= 0, f"moe.aux_loss_coeff = {self.aux_loss_coeff}", rule="must not be negative",
                fix="0 leaves the auxiliary loss out")  # fmt: skip
