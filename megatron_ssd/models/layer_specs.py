"""Chooses the layer spec: TransformerEngine's, or that of local layers, which run with or without CUDA."""

from __future__ import annotations

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from megatron_ssd.models.routers import Router
from megatron_ssd.runtime.local_attention import SegmentAttention
from megatron_ssd.runtime.local_norm import RMSNorm


def block_spec(
    config: TransformerConfig, *, transformer_engine: bool, vp_stage: int | None = None
) -> TransformerBlockSubmodules:
    """The layers of this rank's virtual pipeline stage ``vp_stage``, and the norm after the last layer."""
    if transformer_engine:
        block = get_gpt_decoder_block_spec(config, use_transformer_engine=True, vp_stage=vp_stage)
        return with_own_router(block) if config.num_moe_experts else block
    layer = _local_layer(config)
    num_layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=RMSNorm)


def with_own_router(block: TransformerBlockSubmodules) -> TransformerBlockSubmodules:
    """``block``, the layers of a mixture of experts, with this project's router in place of Megatron-Core's."""
    for layer in block.layer_specs:
        mlp = layer.submodules.mlp
        # A ModuleSpec in Megatron-Core 0.16, a functools.partial in 0.19.
        submodules = mlp.submodules if isinstance(mlp, ModuleSpec) else mlp.keywords["submodules"]
        submodules.router = Router
    return block


def _local_layer(config: TransformerConfig) -> ModuleSpec:
    """Megatron-Core's pre-norm layer with the norm and core attention of ``megatron_ssd.runtime``."""
    qk_norm = RMSNorm if config.qk_layernorm else IdentityOp
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear,
            core_attention=SegmentAttention,
            linear_proj=RowParallelLinear,
            q_layernorm=qk_norm,
            k_layernorm=qk_norm,
        ),
    )
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=_local_mlp(config),
            mlp_bda=get_bias_dropout_add,
            # Checkpoint keys of TransformerEngine's fused layers, so that one checkpoint serves both specs.
            sharded_state_dict_keys_map={
                "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
                **({} if config.num_moe_experts else {"pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"}),
            },
        ),
    )


def _local_mlp(config: TransformerConfig) -> ModuleSpec:
    """One MLP, or experts as separate MLPs, because the grouped form needs CUDA kernels."""
    linears = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    if not config.num_moe_experts:
        return ModuleSpec(module=MLP, submodules=linears)
    experts = ModuleSpec(module=SequentialMLP, submodules=linears)
    return ModuleSpec(module=MoELayer, submodules=MoESubmodules(experts=experts, router=Router))
