"""What a model family is: its configuration keys and its weight table, for both directions.

A Hugging Face ``config.json`` says more than ``ModelConfig`` does. What both say must agree; what only the file says
must have the one value that the Megatron model here computes with (``fixed``), or not matter to a forward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_ssd.config.model import ModelConfig, RopeScalingConfig
from megatron_ssd.errors import UserError
from megatron_ssd.models.weights import Direct, Rule

# Keys of ModelConfig that config.json has under the same name, for every family.
_SHARED_KEYS = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "vocab_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
)  # fmt: skip
_SHARED_FIXED = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family.

    Args:
        model_type: as in ``config.json``.
        architecture: transformers' class, which vLLM goes by too.
        rows: the weight table without the output layer, which ``table`` adds.
        keys: further keys of ``ModelConfig`` that ``config.json`` has under the same name.
        fixed: further keys whose value must be this one where they are present.
    """

    model_type: str
    architecture: str
    rows: tuple[Rule, ...]
    keys: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def table(self, model: ModelConfig) -> tuple[Rule, ...]:
        """All rows. With tied embeddings the last pipeline stage's output layer is a copy of the embedding."""
        output = "model.embed_tokens.weight" if model.tie_word_embeddings else "lm_head.weight"
        return (*self.rows, Direct("output_layer.weight", (output,), split=0))

    def ignored_hf_names(self, model: ModelConfig) -> set[str]:
        """Weights that a folder may hold and that transformers, too, does not read."""
        return {"lm_head.weight"} if model.tie_word_embeddings else set()

    def to_hf_config(self, model: ModelConfig, *, dtype: str) -> dict[str, Any]:
        """``config.json`` of ``model``, in the form that transformers 4 and 5 and vLLM read."""
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
        """The keys of ``ModelConfig`` that decide a forward pass, as ``config.json`` says them.

        Args:
            values: content of ``config.json``.
            source: the file, for messages.

        Raises:
            UserError: it asks for something that the Megatron model here does not compute, or leaves a key out.
        """
        for key, wanted in {**_SHARED_FIXED, **self.fixed}.items():
            if values.get(key, wanted) != wanted:
                raise UserError(f"{source}: {key} = {values[key]!r}", rule=f"only {wanted!r} is built here",
                                fix="use a model without it")  # fmt: skip
        rope = values.get("rope_parameters") or {**(values.get("rope_scaling") or {}), **values}
        known = {"tie_word_embeddings": False, **values, "rope_theta": rope.get("rope_theta")}
        known.setdefault("num_experts", values.get("num_local_experts"))
        if known.get("head_dim") is None and {"hidden_size", "num_attention_heads"} <= known.keys():
            known["head_dim"] = known["hidden_size"] // known["num_attention_heads"]
        wanted_keys = (*_SHARED_KEYS, *self.keys, "rope_theta")
        missing = [key for key in wanted_keys if known.get(key) is None]
        if missing:
            raise UserError(f"file {source}", rule=f"has no {missing[0]}", fix="use the model's own config.json")
        return {**{key: known[key] for key in wanted_keys}, "rope_scaling": _rope_scaling(rope, source=source)}

    def check_hf_config(self, values: Mapping[str, Any], model: ModelConfig, *, source: Path) -> None:
        """Raise ``UserError`` at the first key in which ``config.json`` and ``model`` differ."""
        if values.get("model_type") != self.model_type:
            raise UserError(
                f"model.model_type = {self.model_type}",
                rule=f"{source} says {values.get('model_type')!r}",
                fix="choose the model group that goes with model.path",
            )
        for key, theirs in self.from_hf_config(values, source=source).items():
            ours = getattr(model, key)
            if ours != theirs:
                raise UserError(
                    f"model.{key} = {ours}",
                    rule=f"{source} says {theirs}",
                    fix="choose the model group that goes with model.path, or set the key to what the folder says",
                )


def _rope_scaling(rope: Mapping[str, Any], *, source: Path) -> RopeScalingConfig | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise UserError(f"{source}: rope_type = {kind!r}", rule="only default and llama3 are built here",
                        fix="use a model without it")  # fmt: skip
    return RopeScalingConfig(**{key.name: rope[key.name] for key in dataclasses.fields(RopeScalingConfig)})
