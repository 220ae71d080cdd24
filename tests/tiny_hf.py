"""Tiny Hugging Face models, made by transformers itself, and the configurations that go with them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import transformers

from megatron_ssd.config.model import ModelConfig, RopeScalingConfig

_SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 48, "vocab_size": 64, "max_position_embeddings": 512, "rope_theta": 10000.0,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}

MODELS = {
    "qwen3": ModelConfig(name="qwen3", model_type="qwen3", **_SHAPE),
    "qwen3_tied": ModelConfig(name="qwen3_tied", model_type="qwen3", tie_word_embeddings=True, **_SHAPE),
    "qwen3_moe": ModelConfig(name="qwen3_moe", model_type="qwen3_moe", **_SHAPE, **_EXPERTS),
    "llama": ModelConfig(name="llama", model_type="llama", **_SHAPE),
    "llama_tied": ModelConfig(name="llama_tied", model_type="llama", tie_word_embeddings=True, **_SHAPE),
    "llama_scaled": ModelConfig(name="llama_scaled", model_type="llama", rope_scaling=RopeScalingConfig(), **_SHAPE),
}

_CLASSES = {
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "qwen3_moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
}


def write_hf_folder(
    folder: Path, model: ModelConfig, *, dtype: torch.dtype = torch.float32, max_shard_size: str = "5GB"
) -> ModelConfig:
    """Save random weights of ``model`` to ``folder`` and return ``model`` with that path. No weight is all ones."""
    config_class, model_class = _CLASSES[model.model_type]
    values = dataclasses.asdict(model)
    rope = {"rope_theta": values.pop("rope_theta"), "rope_type": "default"}
    scaling = values.pop("rope_scaling")
    if scaling:
        rope |= {**scaling, "rope_type": "llama3"}
    for key in ("name", "path", "revision", "model_type"):
        del values[key]
    torch.manual_seed(0)
    hf_model = model_class(config_class(**values, rope_parameters=rope)).to(dtype)
    with torch.no_grad():
        for weight in hf_model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    hf_model.save_pretrained(folder, max_shard_size=max_shard_size)
    return dataclasses.replace(model, path=str(folder))
