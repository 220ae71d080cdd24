"""Defines a model family: how Hugging Face's form maps to Megatron-Core's.

A Hugging Face ``config.json`` has more keys than ``ModelConfig``. Keys that both have must agree. A key that only the
file has must have the one supported value (``fixed``), or not affect the forward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.errors import UserError
from megatron_ssd.models.families.mappings import ParamMapping, VocabularyMapping
from megatron_ssd.models.families.rope import read_rope

# Keys that ModelConfig and config.json share, for every family.
_SHARED_KEYS = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "vocab_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
)  # fmt: skip
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_SHARED_FIXED = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}
# transformers' defaults for keys that config.json may lack, mostly in older files.
_SHARED_DEFAULTS = {"tie_word_embeddings": False, "rms_norm_eps": 1e-6}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family.

    Args:
        model_type: as in ``config.json``.
        architecture: transformers' class name, which vLLM uses too.
        mappings: parameter mappings without the output layer, which ``all_mappings`` adds.
        keys: further keys that ``ModelConfig`` and ``config.json`` share.
        fixed: further keys with the one supported value.
        defaults: transformers' defaults for further keys that ``config.json`` may lack.
    """

    model_type: str
    architecture: str
    mappings: tuple[ParamMapping, ...]
    keys: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def all_mappings(self, model: ModelConfig) -> tuple[ParamMapping, ...]:
        """All mappings. With tied embeddings the last pipeline stage's output layer is a copy of the embedding."""
        output = EMBEDDING if model.tie_word_embeddings else HEAD
        return (*self.mappings, VocabularyMapping("output_layer.weight", (output,), shard_dim=0))

    def ignored_hf_names(self, model: ModelConfig) -> set[str]:
        """Weights that a folder may have and that no parameter is made of.

        These are a copy of tied embeddings (``check_tied_head`` compares it), and rotary frequencies, which older
        versions of transformers saved with the weights and no version reads.
        """
        frequencies = {
            f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(model.num_hidden_layers)
        }
        return {"model.rotary_emb.inv_freq", *frequencies, *((HEAD,) if model.tie_word_embeddings else ())}

    def to_hf_config(self, model: ModelConfig, *, dtype: str) -> dict[str, Any]:
        """``config.json`` of ``model`` in a form that transformers 4, transformers 5 and vLLM read."""
        values = {key: getattr(model, key) for key in (*_SHARED_KEYS, *self.keys)}
        scaling = model.rope_scaling
        return {
            "architectures": [self.architecture],
            **values,
            **_SHARED_FIXED,
            **self.fixed,
            "rope_theta": model.rope_theta,
            "rope_scaling": None if scaling is None else {"rope_type": "llama3", **dataclasses.asdict(scaling)},
            "initializer_range": model.initializer_range,
            "attention_dropout": 0.0,
            "use_cache": True,
            "torch_dtype": dtype,
        }

    def from_hf_config(self, values: Mapping[str, Any], *, source: Path) -> dict[str, Any]:
        """The keys of ``ModelConfig`` that determine a forward pass, from ``config.json``.

        Args:
            values: content of ``config.json``.
            source: the file, for messages.

        Raises:
            UserError: it needs something that is not supported here, or a key is missing.
        """
        self._check_fixed(values, source)
        given = {key: value for key, value in values.items() if value is not None}
        known = {**_SHARED_DEFAULTS, **self.defaults, **given}
        known["rope_theta"], scaling = read_rope(values, source=source)
        known.setdefault("num_experts", values.get("num_local_experts"))
        if {"hidden_size", "num_attention_heads"} <= known.keys():
            known.setdefault("num_key_value_heads", known["num_attention_heads"])
            known.setdefault("head_dim", known["hidden_size"] // known["num_attention_heads"])
        required = (*_SHARED_KEYS, *self.keys, "rope_theta")
        missing = [key for key in required if known.get(key) is None]
        if missing:
            raise UserError(f"file {source}", rule=f"has no {missing[0]}", fix="use the model's own config.json")
        return {**{key: known[key] for key in required}, "rope_scaling": scaling}

    def _check_fixed(self, values: Mapping[str, Any], source: Path) -> None:
        """Raise ``UserError`` for a value that is not supported here."""
        for key, supported in {**_SHARED_FIXED, **self.fixed}.items():
            if values.get(key) not in (None, supported):
                raise UserError(f"{source}: {key} = {values[key]!r}", rule=f"only {supported!r} is supported",
                                fix="use a model without it")  # fmt: skip
        other = set(values.get("layer_types") or ()) - {"full_attention"}
        if other:
            raise UserError(f"{source}: layer_types has {sorted(other)}", rule="only full_attention is supported",
                            fix="use a model without it")  # fmt: skip
        if values.get("quantization_config"):
            raise UserError(f"{source}: quantization_config is set", rule="quantised weights are not converted",
                            fix="use the model's unquantised weights")  # fmt: skip

    def check_hf_config(self, values: Mapping[str, Any], model: ModelConfig, *, source: Path) -> None:
        """Raise ``UserError`` for the first key in which ``config.json`` and ``model`` differ."""
        if values.get("model_type") != self.model_type:
            raise UserError(
                f"model.model_type = {self.model_type}",
                rule=f"{source} says {values.get('model_type')!r}",
                fix="choose the model group for model.path",
            )
        for key, theirs in self.from_hf_config(values, source=source).items():
            ours = getattr(model, key)
            if ours != theirs:
                raise UserError(
                    f"model.{key} = {ours}",
                    rule=f"{source} says {theirs}",
                    fix="choose the model group for model.path, or set the key to the folder's value",
                )
