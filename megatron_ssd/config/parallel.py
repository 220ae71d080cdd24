"""The process grid of training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.reference import require_key, require_positive
from megatron_ssd.errors import require


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Megatron-Core's process grid.

    The data parallel size follows: world_size / (tensor x pipeline x context).
    """

    world_size: int = 1
    """Number of processes."""
    tensor_model_parallel_size: int = 1
    """Processes that share each matrix."""
    pipeline_model_parallel_size: int = 1
    """Pipeline stages."""
    virtual_pipeline_model_parallel_size: int | None = None
    """Parts per pipeline stage (interleaved schedule)."""
    context_parallel_size: int = 1
    """Processes that share the tokens of each sequence."""
    expert_model_parallel_size: int = 1
    """Processes that the experts are distributed over."""
    expert_tensor_parallel_size: int = 1
    """Processes that share each expert's matrices."""
    sequence_parallel: bool = False
    """Split norms and dropout over the tensor parallel processes, along the sequence."""
    cp_comm_type: Literal["p2p", "a2a", "all_gather"] = "p2p"
    """How TransformerEngine's attention exchanges tokens under context parallelism: ``p2p`` passes keys and values
    around in a ring while it computes; ``a2a`` gives each process all tokens of some heads, which is faster for short
    samples and needs as many key heads per tensor parallel process; ``all_gather`` collects keys and values, of
    sequences that are not packed."""
    use_distributed_optimizer: bool = True
    """Split optimizer state over data parallel replicas."""

    def __post_init__(self) -> None:
        require_positive(self, "world_size", "tensor_model_parallel_size", "pipeline_model_parallel_size",
                         "context_parallel_size", "expert_model_parallel_size", "expert_tensor_parallel_size",
                         fix="use 1 to split nothing")  # fmt: skip
        dense = self._model_size
        require_key(self, "world_size", self.world_size % dense == 0,
                    rule=f"must be a multiple of tensor x pipeline x context parallel size ({dense})",
                    fix=f"start a multiple of {dense} processes or lower one of the sizes")  # fmt: skip
        expert = self.expert_model_parallel_size * self.expert_tensor_parallel_size * self.pipeline_model_parallel_size
        require_key(self, "expert_model_parallel_size", self.world_size % expert == 0,
                    rule=f"expert x expert-tensor x pipeline size ({expert}) must divide parallel.world_size "
                    f"({self.world_size})", fix="lower parallel.expert_model_parallel_size, or take an experiment "
                    "for this number of GPUs (docs/guides/recipes.md)")  # fmt: skip
        require_key(self, "sequence_parallel", not self.sequence_parallel or self.tensor_model_parallel_size > 1,
                    rule=f"needs tensor_model_parallel_size > 1 (it is {self.tensor_model_parallel_size})",
                    fix="set parallel.sequence_parallel=false or raise parallel.tensor_model_parallel_size"
                    )  # fmt: skip
        virtual = self.virtual_pipeline_model_parallel_size
        require_key(self, "virtual_pipeline_model_parallel_size",
                    virtual is None or self.pipeline_model_parallel_size > 1,
                    rule="needs pipeline_model_parallel_size > 1",
                    fix="remove it or raise parallel.pipeline_model_parallel_size")  # fmt: skip

    @property
    def _model_size(self) -> int:
        """Processes that share one replica of the dense part of the model."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size

    @property
    def data_parallel_size(self) -> int:
        """Replicas of the dense part of the model."""
        return self.world_size // self._model_size

    @property
    def context_chunks(self) -> int:
        """Parts of a sequence, or of each sample in a packed sequence, under context parallelism: two per rank."""
        return 2 * self.context_parallel_size if self.context_parallel_size > 1 else 1

    @property
    def sequence_parts(self) -> int:
        """The length of a sequence must be a multiple of this."""
        per_rank = self.tensor_model_parallel_size if self.sequence_parallel else 1
        return math.lcm(self.context_chunks, self.context_parallel_size * per_rank)

    def check_model(self, model: ModelConfig) -> None:
        """Raise ``ConfigError`` if ``model`` cannot be split this way."""
        tp, pp = self.tensor_model_parallel_size, self.pipeline_model_parallel_size
        ep = self.expert_model_parallel_size
        for key in ("num_attention_heads", "num_key_value_heads"):
            value = getattr(model, key)
            require(
                value % tp == 0,
                f"parallel.tensor_model_parallel_size = {tp}",
                rule=f"must divide model.{key} ({value})",
                fix="use a tensor parallel size that divides it, for example 1",
            )
        heads = model.num_key_value_heads // tp
        require(
            self.cp_comm_type != "a2a" or heads % self.context_parallel_size == 0,
            "parallel.cp_comm_type = a2a",
            rule=f"context_parallel_size ({self.context_parallel_size}) must divide the key heads of a tensor parallel "
            f"process ({heads})",
            fix="set parallel.cp_comm_type=p2p or lower parallel.context_parallel_size",
        )
        chunks = pp * (self.virtual_pipeline_model_parallel_size or 1)
        require(
            model.num_hidden_layers % chunks == 0,
            f"parallel.pipeline_model_parallel_size = {pp}",
            rule=f"pipeline stages x virtual stages ({chunks}) must divide model.num_hidden_layers "
            f"({model.num_hidden_layers})",
            fix="use a pipeline parallel size that divides it, for example 1",
        )
        require(
            (model.num_experts or 0) % ep == 0 and (model.is_moe or ep == 1),
            f"parallel.expert_model_parallel_size = {ep}",
            rule=f"must divide model.num_experts ({model.num_experts or 0}), and be 1 for a dense model",
            fix="use an expert parallel size that divides it, for example 1",
        )
        expert_tp = f"parallel.expert_tensor_parallel_size={tp}"
        needs_expert_tp = model.is_moe and ep == 1 and self.expert_tensor_parallel_size != tp
        require(
            not (model.is_moe and tp > 1 and not self.sequence_parallel),
            "parallel.sequence_parallel = false",
            rule="Megatron-Core trains mixtures of experts under tensor parallelism with sequence parallelism only",
            fix="set parallel.sequence_parallel=true" + f" {expert_tp}" * needs_expert_tp,
        )
        require(
            not needs_expert_tp,
            f"parallel.expert_tensor_parallel_size = {self.expert_tensor_parallel_size}",
            rule="without expert parallelism Megatron-Core sums expert gradients like dense ones: it must equal "
            f"parallel.tensor_model_parallel_size ({tp})",
            fix=f"set {expert_tp} or parallel.expert_model_parallel_size above 1",
        )
