"""Llama 3.x: grouped-query attention, SwiGLU, optional rotary scaling of Llama 3.1."""

from megatron_ssd.models.families.family import Family
from megatron_ssd.models.families.mappings import ATTENTION, DENSE_MLP, EMBEDDING_AND_FINAL_NORM

FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    mappings=(*EMBEDDING_AND_FINAL_NORM, *ATTENTION, *DENSE_MLP),
    fixed={"mlp_bias": False},
)
