"""Llama 3.x: grouped-query attention, SwiGLU, rotary frequencies scaled as in Llama 3.1 where the model asks for it."""

from megatron_ssd.models.families.family import Family
from megatron_ssd.models.families.mappings import ATTENTION, DENSE_MLP, EMBEDDING_AND_FINAL_NORM

FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    mappings=(*EMBEDDING_AND_FINAL_NORM, *ATTENTION, *DENSE_MLP),
    fixed={"mlp_bias": False},
)
