"""Describes what each rank of a layout holds.

Does not need torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.parallel import ParallelConfig


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """The parameters that one rank would hold.

    ``num_product_weights`` counts the weights of projections and experts in each layer of the full model, which are
    those of FP8 products. Router and output layer stay in bf16.
    """

    rank: int
    tensor_rank: int
    pipeline_rank: int
    context_rank: int
    expert_rank: int
    data_rank: int
    num_parameters: int
    num_expert_parameters: int = 0  # those that differ between the ranks of expert parallelism
    num_frozen_parameters: int = 0
    num_product_weights: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LayoutReport:
    """Every rank, and the parameters of the full model."""

    ranks: tuple[RankReport, ...]
    num_parameters: int

    def table(self) -> str:
        """The report as text, one line per rank."""
        lines = ["rank  tensor  pipeline  context  expert  data        parameters"]
        lines += [
            f"{r.rank:4d}  {r.tensor_rank:6d}  {r.pipeline_rank:8d}  {r.context_rank:7d}  {r.expert_rank:6d}  "
            f"{r.data_rank:4d}  {r.num_parameters:16,d}"
            for r in self.ranks
        ]
        return "\n".join([*lines, f"full model, each parameter once: {self.num_parameters:,}"])


def count_layout(model: ModelConfig, parallel: ParallelConfig) -> LayoutReport:
    """One rank of the first and one of the last pipeline stage, counted from the shape in no time.

    The dry run counts every rank of the model that Megatron-Core builds.
    """
    tp, pp, ep, etp = (
        parallel.tensor_model_parallel_size,
        parallel.pipeline_model_parallel_size,
        parallel.expert_model_parallel_size,
        parallel.expert_tensor_parallel_size,
    )
    q_size, kv_size = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    split = model.hidden_size * (2 * q_size + 2 * kv_size) + (q_size + 2 * kv_size if model.has_qkv_bias else 0)
    whole = 2 * model.hidden_size + (2 * model.head_dim if model.has_qk_norm else 0)
    experts = 0
    if model.num_experts is not None and model.moe_intermediate_size is not None:
        whole += model.num_experts * model.hidden_size
        experts = model.num_experts // ep * 3 * model.hidden_size * model.moe_intermediate_size // etp
    else:
        split += 3 * model.hidden_size * model.intermediate_size
    num_layers = model.num_hidden_layers // pp
    vocabulary = -(-model.vocab_size // tp) * model.hidden_size  # padded to a multiple of the tensor parallel size
    ranks = []
    for stage in sorted({0, pp - 1}):
        is_last = stage == pp - 1
        tables = (stage == 0) + (is_last and not (model.tie_word_embeddings and pp == 1))
        ranks.append(
            RankReport(
                rank=stage * parallel.world_size // pp,
                tensor_rank=0,
                pipeline_rank=stage,
                context_rank=0,
                expert_rank=0,
                data_rank=0,
                num_parameters=num_layers * (split // tp + whole + experts)
                + tables * vocabulary
                + (model.hidden_size if is_last else 0),
                num_expert_parameters=num_layers * experts if ep > 1 else 0,
                num_product_weights=tuple(
                    split // tp + experts if number // num_layers == stage else 0
                    for number in range(model.num_hidden_layers)
                ),
            )
        )
    return LayoutReport(ranks=tuple(ranks), num_parameters=model.num_parameters())
