"""Tests how a model's configuration is read from and written to ``config.json``."""

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import transformers

from megatron_ssd.artifacts.hf_config import read_hf_config
from megatron_ssd.config.model import ModelConfig, ModelType
from megatron_ssd.errors import UserError
from megatron_ssd.models.architectures import ARCHITECTURES, check_hf_config, from_hf_config, to_hf_config
from megatron_ssd.models.rope import write_rope
from tests.helpers.errors import one_line_error
from tests.helpers.tiny_hf import MODELS, write_hf_folder

SOURCE = Path("folder/config.json")


def to_hf(model: ModelConfig) -> dict[str, Any]:
    return to_hf_config(model, dtype="float32")


@pytest.mark.parametrize("name", MODELS)
def test_config_round_trip_through_transformers(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    check_hf_config(to_hf(model), model, source=SOURCE)
    # transformers reads our file and writes its own form, which must parse to the same configuration.
    transformers.AutoConfig.for_model(**to_hf(model)).save_pretrained(tmp_path)
    check_hf_config(read_hf_config(tmp_path), model, source=SOURCE)


@pytest.mark.parametrize("name", ["qwen3_moe", "llama_scaled", "llama_linear", "qwen2_drawn", "mistral_drawn"])
def test_a_folder_written_by_transformers_is_accepted(name: str, tmp_path: Path) -> None:
    model = write_hf_folder(tmp_path, MODELS[name])
    check_hf_config(read_hf_config(tmp_path), model, source=SOURCE)


def test_older_llama_files_are_accepted() -> None:
    """Older files have no head_dim and no key for tied embeddings, and have rope scaling beside theta."""
    model = dataclasses.replace(MODELS["llama_scaled"], head_dim=8)
    values = to_hf(model)
    del values["head_dim"], values["tie_word_embeddings"]
    check_hf_config(values, model, source=SOURCE)


@pytest.mark.parametrize(
    ("key", "value"), [("vocab_size", 65), ("rope_theta", 1e6), ("num_experts", 8), ("tie_word_embeddings", True)]
)
def test_a_difference_is_named_with_key_and_both_values(key: str, value: Any) -> None:
    model = MODELS["qwen3_moe"]
    with pytest.raises(UserError, match=rf"model.{key} = {getattr(model, key)}: folder/config.json says {value}"):
        check_hf_config({**to_hf(model), key: value}, model, source=SOURCE)


def test_rope_scaling_must_agree() -> None:
    values = to_hf(MODELS["llama_scaled"])
    with pytest.raises(UserError, match=r"model.rope_scaling = None"):
        check_hf_config(values, MODELS["llama"], source=SOURCE)
    values["rope_scaling"] = {"rope_type": "yarn", "factor": 4.0}
    with pytest.raises(UserError, match="rope_type = 'yarn'"):
        check_hf_config(values, MODELS["llama"], source=SOURCE)


@pytest.mark.parametrize(
    ("key", "value", "feature"),
    [
        ("attention_bias", True, "a bias in attention"),
        ("qkv_bias", True, "a bias in attention"),
        ("mlp_bias", True, "a bias in feed-forward layers"),
        ("hidden_act", "gelu", "an activation function other than SiLU"),
        ("layer_norm_eps", 1e-5, "a norm other than RMSNorm"),
        ("final_logit_softcapping", 30.0, "soft capping of logits"),
        ("residual_multiplier", 0.2, "scaling of logits or residuals"),
        ("kv_lora_rank", 512, "multi-head latent attention"),
        ("mlp_only_layers", [0], "dense layers among experts"),
        ("decoder_sparse_step", 2, "dense layers among experts"),
        ("n_shared_experts", 1, "shared experts"),
        ("quantization_config", {"bits": 4}, "quantised weights"),
        ("architectures", ["Qwen3MoeForSequenceClassification"], "only Qwen3MoeForCausalLM is supported"),
        ("partial_rotary_factor", 0.5, "only 1.0 is supported"),
        ("rope_scaling", {"rope_type": "longrope", "factor": 4.0}, "only default, llama3, linear are supported"),
    ],
)
def test_an_unsupported_feature_is_refused_by_its_name(key: str, value: Any, feature: str) -> None:
    what = "rope_type" if key == "rope_scaling" else key
    with one_line_error(rf"{SOURCE}: {what} = .*: {re.escape(feature)}.*; use a model"):
        from_hf_config({**to_hf(MODELS["qwen3_moe"]), key: value}, source=SOURCE)


@pytest.mark.parametrize("key", ["attention_bias", "qkv_bias"])
def test_the_bias_of_qwen2_needs_no_key_and_none_turns_it_off(key: str) -> None:
    """transformers and vLLM build it whatever the file says."""
    model = MODELS["qwen2_drawn"]
    for value in (True, False):
        check_hf_config({**to_hf(model), key: value}, model, source=SOURCE)


@pytest.mark.parametrize("model_type", ["gemma3", "deepseek_v3", None, 7])
def test_another_model_type_is_refused_with_the_list_of_supported_ones(model_type: Any) -> None:
    with one_line_error(r"model_type = .*: supported are llama, mistral, qwen2, qwen3, qwen3_moe"):
        from_hf_config({**to_hf(MODELS["llama"]), "model_type": model_type}, source=SOURCE)


def test_the_configuration_knows_every_architecture() -> None:
    assert set(get_args(ModelType)) == set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("model_type", "changes", "window"),
    [
        ("mistral", {"sliding_window": 32}, 32),
        ("mistral", {"sliding_window": None}, None),
        ("mistral", {}, 4096),  # transformers' default
        ("qwen2", {"sliding_window": 32, "use_sliding_window": False}, None),
        ("qwen2", {"sliding_window": 32}, None),
        ("qwen2", {"sliding_window": 32, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}, 32),
        ("llama", {"sliding_window": 32}, None),  # no program reads it
    ],
)
def test_a_sliding_window_is_that_of_transformers(model_type: str, changes: dict[str, Any], window: int | None) -> None:
    values = {"model_type": model_type, **_SHAPE, **changes}
    assert from_hf_config(values, source=SOURCE)["sliding_window"] == window
    if model_type != "llama":
        assert transformers.AutoConfig.for_model(**values).sliding_window == window


def test_another_type_and_a_missing_key_are_errors() -> None:
    with pytest.raises(UserError, match=r"model.model_type = qwen3: .* says llama"):
        check_hf_config(to_hf(MODELS["llama"]), MODELS["qwen3"], source=SOURCE)
    values = to_hf(MODELS["qwen3"])
    del values["hidden_size"]
    with pytest.raises(UserError, match="has no hidden_size"):
        check_hf_config(values, MODELS["qwen3"], source=SOURCE)


def test_harmless_keys_are_accepted() -> None:
    """A file of transformers 5 has rope_parameters, layer types, and null for unset values."""
    model = MODELS["qwen3"]
    values = to_hf(model)
    del values["rope_theta"], values["rope_scaling"]
    values |= {
        "rope_parameters": {"rope_theta": model.rope_theta, "rope_type": "default", "partial_rotary_factor": 1.0},
        "layer_types": ["full_attention"] * 4, "sliding_window": None, "pad_token_id": None, "attention_bias": None,
        "dtype": "bfloat16", "quantization_config": None,
    }  # fmt: skip
    check_hf_config(values, model, source=SOURCE)
    with pytest.raises(UserError, match="layer_types has"):
        check_hf_config({**values, "layer_types": ["sliding_attention"]}, model, source=SOURCE)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_defaults_equal_those_of_transformers(model_type: str) -> None:
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
             "vocab_size": 64, "max_position_embeddings": 64}  # fmt: skip
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    values = {"model_type": model_type, **shape, **(experts if model_type == "qwen3_moe" else {})}
    theirs = transformers.AutoConfig.for_model(**values)
    ours = from_hf_config(values, source=SOURCE)
    head_dim = getattr(theirs, "head_dim", None) or 64 // 4
    assert (ours["head_dim"], ours["rope_theta"]) == (head_dim, theirs.rope_parameters["rope_theta"])
    keys = ["tie_word_embeddings", "rms_norm_eps", "num_key_value_heads"]
    for key in [*keys, *(["norm_topk_prob"] if model_type == "qwen3_moe" else [])]:
        assert ours[key] == getattr(theirs, key), key


def test_rope_scaling_needs_all_four_numbers() -> None:
    values = to_hf(MODELS["llama_scaled"])
    del values["rope_scaling"]["low_freq_factor"]
    with pytest.raises(UserError, match=r"rope_type = 'llama3': low_freq_factor is missing"):
        from_hf_config(values, source=SOURCE)


_SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
          "intermediate_size": 96, "vocab_size": 64, "max_position_embeddings": 64}  # fmt: skip
_NUMBERS = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_ROPES: dict[str, dict[str, Any] | None] = {
    "null": None, "empty": {}, "default": {"rope_type": "default"}, "old default": {"type": "default"},
    "theta": {"rope_type": "default", "rope_theta": 5e6}, "theta alone": {"rope_theta": 5e6},
    "llama3": {"rope_type": "llama3", **_NUMBERS}, "old llama3": {"type": "llama3", **_NUMBERS},
    "llama3 with its length": {"rope_type": "llama3", "original_max_position_embeddings": 32, **_NUMBERS},
    "linear": {"rope_type": "linear", "factor": 4.0}, "old linear": {"type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0}, "old yarn": {"type": "yarn", "factor": 4.0},
}  # fmt: skip


@pytest.mark.parametrize("parameters", _ROPES)
@pytest.mark.parametrize("scaling", _ROPES)
def test_a_rotary_embedding_is_that_of_transformers_or_refused(scaling: str, parameters: str) -> None:
    for theta in ({}, {"rope_theta": 1e6}, {"rope_theta": 5e6}):
        values = {"model_type": "llama", **_SHAPE, "rope_scaling": _ROPES[scaling],
                  "rope_parameters": _ROPES[parameters], **theta}  # fmt: skip
        theirs = transformers.AutoConfig.for_model(**copy.deepcopy(values)).rope_parameters
        try:
            ours = from_hf_config(values, source=SOURCE)
        except UserError:
            # Refused: a type that is not supported, or two dictionaries that differ.
            assert theirs["rope_type"] == "yarn" or (_ROPES[scaling] and _ROPES[parameters])
            continue
        assert ours["rope_theta"] == theirs["rope_theta"]
        found = ours["rope_scaling"]
        assert theirs["rope_type"] == ("default" if found is None else found.rope_type)
        assert (write_rope(found) or {}).items() <= theirs.items()


@pytest.mark.parametrize(
    "changes",
    [
        # transformers and vLLM would use YaRN, the trainer none
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6}, "rope_scaling": {"type": "default"}},
        {"rope_scaling": {"rope_type": "llama3", "type": "default", **_NUMBERS}},
        # vLLM, and not transformers, reads the length beside the dictionary
        {"rope_scaling": {"rope_type": "llama3", **_NUMBERS}, "original_max_position_embeddings": 32},
        {"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        {"rotary_pct": 0.5},
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5e6}}},
    ],
)
def test_a_rotary_embedding_that_programs_read_differently_is_refused(changes: dict[str, Any]) -> None:
    with one_line_error(str(SOURCE)):
        from_hf_config({"model_type": "llama", **_SHAPE, **changes}, source=SOURCE)
