"""Qwen3, dense: grouped-query attention with query and key norms, SwiGLU."""

from megatron_ssd.models.families.family import Family
from megatron_ssd.models.families.rows import ATTENTION, DENSE_MLP, EMBEDDING_AND_FINAL_NORM, QK_NORM

FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    rows=(*EMBEDDING_AND_FINAL_NORM, *ATTENTION, *QK_NORM, *DENSE_MLP),
    defaults={"head_dim": 128},
)
