"""Rows of the weight table that families share.

Where the local layer spec and TransformerEngine's name a weight differently there is a row for each: a model has one of
the two.
"""

from __future__ import annotations

from megatron_ssd.models.weights import Direct, GateUpMerge, QkvMerge, Vocabulary

_MEGATRON = "decoder.layers.{layer}"
_HF = "model.layers.{layer}"

EMBEDDING_AND_FINAL_NORM = (
    Vocabulary("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), split=0),
    Direct("decoder.final_layernorm.weight", ("model.norm.weight",)),
)

ATTENTION = (
    Direct(f"{_MEGATRON}.input_layernorm.weight", (f"{_HF}.input_layernorm.weight",)),
    Direct(f"{_MEGATRON}.self_attention.linear_qkv.layer_norm_weight", (f"{_HF}.input_layernorm.weight",)),
    QkvMerge(
        f"{_MEGATRON}.self_attention.linear_qkv.weight",
        (f"{_HF}.self_attn.q_proj.weight", f"{_HF}.self_attn.k_proj.weight", f"{_HF}.self_attn.v_proj.weight"),
        split=0,
    ),
    Direct(f"{_MEGATRON}.self_attention.linear_proj.weight", (f"{_HF}.self_attn.o_proj.weight",), split=1),
)

QK_NORM = (
    Direct(f"{_MEGATRON}.self_attention.q_layernorm.weight", (f"{_HF}.self_attn.q_norm.weight",)),
    Direct(f"{_MEGATRON}.self_attention.k_layernorm.weight", (f"{_HF}.self_attn.k_norm.weight",)),
)

DENSE_MLP = (
    Direct(f"{_MEGATRON}.pre_mlp_layernorm.weight", (f"{_HF}.post_attention_layernorm.weight",)),
    Direct(f"{_MEGATRON}.mlp.linear_fc1.layer_norm_weight", (f"{_HF}.post_attention_layernorm.weight",)),
    GateUpMerge(
        f"{_MEGATRON}.mlp.linear_fc1.weight",
        (f"{_HF}.mlp.gate_proj.weight", f"{_HF}.mlp.up_proj.weight"),
        split=0,
    ),
    Direct(f"{_MEGATRON}.mlp.linear_fc2.weight", (f"{_HF}.mlp.down_proj.weight",), split=1),
)

_EXPERT = f"{_HF}.mlp.experts.{{expert}}"

EXPERTS = (
    Direct(f"{_MEGATRON}.pre_mlp_layernorm.weight", (f"{_HF}.post_attention_layernorm.weight",)),
    Direct(f"{_MEGATRON}.mlp.router.weight", (f"{_HF}.mlp.gate.weight",)),
    *(
        row
        # One module an expert in the local spec, one grouped module with numbered weights in TransformerEngine's.
        for fc1, fc2 in (
            ("local_experts.{expert}.linear_fc1.weight", "local_experts.{expert}.linear_fc2.weight"),
            ("linear_fc1.weight{expert}", "linear_fc2.weight{expert}"),
        )
        for row in (
            GateUpMerge(
                f"{_MEGATRON}.mlp.experts.{fc1}", (f"{_EXPERT}.gate_proj.weight", f"{_EXPERT}.up_proj.weight"), split=0
            ),
            Direct(f"{_MEGATRON}.mlp.experts.{fc2}", (f"{_EXPERT}.down_proj.weight",), split=1),
        )
    ),
)
