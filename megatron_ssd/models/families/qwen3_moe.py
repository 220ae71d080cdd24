"""Qwen3 mixture of experts: every layer is routed, no shared expert."""

from megatron_ssd.models.families.family import Family
from megatron_ssd.models.families.mappings import ATTENTION, EMBEDDING_AND_FINAL_NORM, EXPERTS, QK_NORM

FAMILY = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    mappings=(*EMBEDDING_AND_FINAL_NORM, *ATTENTION, *QK_NORM, *EXPERTS),
    keys=("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"),
    fixed={"decoder_sparse_step": 1, "mlp_only_layers": []},
    defaults={"norm_topk_prob": False},
)
