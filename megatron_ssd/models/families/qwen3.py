"""Qwen3, dense: grouped-query attention with query-key norms, SwiGLU."""

from megatron_ssd.models.families.family import Family
from megatron_ssd.models.families.mappings import ATTENTION, DENSE_MLP, EMBEDDING_AND_FINAL_NORM, QK_NORM

FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    mappings=(*EMBEDDING_AND_FINAL_NORM, *ATTENTION, *QK_NORM, *DENSE_MLP),
    defaults={"head_dim": 128},
)
