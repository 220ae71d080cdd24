"""Translates between a model's ``config.json`` and the keys of ``ModelConfig``.

A Hugging Face ``config.json`` has more keys than ``ModelConfig``. Keys that both have must agree. A key that only the
file has must not ask for something that is not built here (``_UNSUPPORTED``), or not affect the forward pass.

Does not need torch.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.errors import UserError
from megatron_ssd.models.rope import read_rope, write_rope

# Keys that ModelConfig and config.json share, for every architecture.
_SHARED_KEYS = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "vocab_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
)  # fmt: skip
# transformers' defaults for keys that config.json may lack, mostly in older files.
_SHARED_DEFAULTS = {"tie_word_embeddings": False, "rms_norm_eps": 1e-6, "use_sliding_window": False}
_ATTENTION_BIAS = ("attention_bias", "bias", "qkv_bias")  # vLLM reads all three for Llama's layers
# Feature -> keys of config.json that ask for it, each with the value that does not. Null and missing keys never do.
_UNSUPPORTED: dict[str, dict[str, Any]] = {
    "an activation function other than SiLU": {"hidden_act": "silu", "hidden_activation": "silu"},
    "a bias in attention": dict.fromkeys(_ATTENTION_BIAS, False),
    "a bias in feed-forward layers": {"mlp_bias": False},
    "a norm other than RMSNorm": {"layer_norm_eps": None, "layer_norm_epsilon": None, "norm_epsilon": None},
    "soft capping of logits": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    "scaling of logits or residuals": {"logit_scale": 1, "logits_scaling": 1, "residual_multiplier": 1},
    "multi-head latent attention (MLA)": {"kv_lora_rank": None, "q_lora_rank": None},
    "dense layers among experts": {"decoder_sparse_step": 1, "mlp_only_layers": None},
    "shared experts": {"n_shared_experts": 0, "shared_expert_intermediate_size": 0},
    "quantised weights": {"quantization_config": None},
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One supported ``model_type``.

    Args:
        name: transformers' class name, which vLLM uses too.
        keys: further keys that ``ModelConfig`` and ``config.json`` share.
        ignored: keys that other architectures read, and this one does not.
        defaults: transformers' defaults for further keys that ``config.json`` may lack.
    """

    name: str
    keys: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)


ARCHITECTURES = {
    "llama": Architecture(name="LlamaForCausalLM"),
    "mistral": Architecture(
        name="MistralForCausalLM",
        defaults={"num_key_value_heads": 8, "use_sliding_window": True, "sliding_window": 4096},
    ),
    "qwen2": Architecture(
        name="Qwen2ForCausalLM", ignored=_ATTENTION_BIAS, defaults={"num_key_value_heads": 32, "sliding_window": 4096}
    ),
    "qwen3": Architecture(
        name="Qwen3ForCausalLM", defaults={"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096}
    ),
    "qwen3_moe": Architecture(
        name="Qwen3MoeForCausalLM",
        keys=("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"),
        defaults={"num_key_value_heads": 4, "norm_topk_prob": False, "sliding_window": 4096},
    ),
}
"""By ``model_type``. ``megatron_ssd.config.model.ModelType`` lists the same names."""


def to_hf_config(model: ModelConfig, *, dtype: str) -> dict[str, Any]:
    """``config.json`` of ``model`` in a form that transformers 4, transformers 5 and vLLM read."""
    architecture = ARCHITECTURES[model.model_type]
    return {
        "architectures": [architecture.name],
        **{key: getattr(model, key) for key in (*_SHARED_KEYS, *architecture.keys)},
        "hidden_act": "silu",
        "sliding_window": model.sliding_window,
        "use_sliding_window": model.sliding_window is not None,
        "rope_theta": model.rope_theta,
        "rope_scaling": write_rope(model.rope_scaling),
        "initializer_range": model.initializer_range,
        "attention_dropout": 0.0,
        "use_cache": True,
        "torch_dtype": dtype,
    }


def from_hf_config(values: Mapping[str, Any], *, source: Path) -> dict[str, Any]:
    """The keys of ``ModelConfig`` that determine a forward pass, from ``config.json``.

    Args:
        values: content of ``config.json``.
        source: the file, for messages.

    Raises:
        UserError: it needs something that is not supported here, or a key is missing.
    """
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise UserError(
            f"{source}: model_type = {reprlib.repr(model_type)}",
            rule=f"supported are {', '.join(ARCHITECTURES)}",
            fix="use a model of one of these types",
        )
    architecture = ARCHITECTURES[model_type]
    _check_supported(values, architecture, source)
    known = {**_SHARED_DEFAULTS, **architecture.defaults, **values}
    known["rope_theta"], known["rope_scaling"] = read_rope(values, source=source)
    known.setdefault("num_experts", values.get("num_local_experts"))
    heads, width = known.get("num_attention_heads"), known.get("hidden_size")
    if isinstance(heads, int) and isinstance(width, int) and heads > 0:
        known |= {key: value for key, value in {"num_key_value_heads": heads, "head_dim": width // heads}.items()
                  if known.get(key) is None}  # fmt: skip
    required = (*_SHARED_KEYS, *architecture.keys, "rope_theta")
    missing = [key for key in required if known.get(key) is None]
    if missing:
        raise UserError(f"file {source}", rule=f"has no {missing[0]}", fix="use the model's own config.json")
    known["sliding_window"] = _sliding_window(known, source)
    return {key: known[key] for key in (*required, "rope_scaling", "sliding_window")}


def check_hf_config(values: Mapping[str, Any], model: ModelConfig, *, source: Path) -> None:
    """Raise ``UserError`` for the first key in which ``config.json`` and ``model`` differ."""
    for key, theirs in from_hf_config(values, source=source).items():
        ours = getattr(model, key)
        if ours != theirs:
            raise contradiction(key, ours, theirs, source)


def contradiction(key: str, ours: object, theirs: object, source: Path) -> UserError:
    """The error for a key of ``model`` that differs from the model's file."""
    return UserError(
        f"model.{key} = {ours}",
        rule=f"{source} says {theirs}",
        fix=f"leave out model.{key}, or what sets it: the file describes the model",
    )


def _sliding_window(known: Mapping[str, Any], source: Path) -> int | None:
    """How many tokens a layer attends to; None for all of them. Raises ``UserError`` for another kind of layer."""
    window: int | None = known.get("sliding_window") if known.get("use_sliding_window") else None
    supported = {"full_attention"} if window is None else {"full_attention", "sliding_attention"}
    other = set(known.get("layer_types") or ()) - supported
    if other:
        raise UserError(f"{source}: layer_types has {sorted(other)}", rule="layers of that type are not supported",
                        fix="use a model without it")  # fmt: skip
    return window


def _check_supported(values: Mapping[str, Any], architecture: Architecture, source: Path) -> None:
    """Raise ``UserError`` for the first feature that is not supported here."""
    named = values.get("architectures") or [architecture.name]
    if architecture.name not in named:
        raise UserError(f"{source}: architectures = {reprlib.repr(named)}",
                        rule=f"only {architecture.name} is supported for this model_type",
                        fix="use a model of that architecture")  # fmt: skip
    for feature, keys in _UNSUPPORTED.items():
        for key, off in keys.items():
            value = values.get(key)
            if key in architecture.ignored or value is None or value == off or (not value and not off):
                continue
            raise UserError(
                f"{source}: {key} = {reprlib.repr(value)}",
                rule=f"{feature} is not supported",
                fix="use a model without it",
            )
