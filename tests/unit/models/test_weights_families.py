"""config.json both ways, against the files that transformers writes and the forms that stand on the Hub."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import transformers

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.errors import UserError
from megatron_ssd.models.families import family_of
from megatron_ssd.models.hf_folder import read_hf_config
from tests.tiny_hf import MODELS, write_hf_folder

SOURCE = Path("folder/config.json")


def to_hf(model: ModelConfig) -> dict[str, Any]:
    return family_of(model.model_type).to_hf_config(model, dtype="float32")


@pytest.mark.parametrize("name", MODELS)
def test_our_config_comes_back_and_transformers_reads_the_same(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    family = family_of(model.model_type)
    family.check_hf_config(to_hf(model), model, source=SOURCE)
    # transformers reads what we write, and writes it in its own way, which must say the same again.
    transformers.AutoConfig.for_model(**to_hf(model)).save_pretrained(tmp_path)
    family.check_hf_config(read_hf_config(tmp_path), model, source=SOURCE)


@pytest.mark.parametrize("name", ["qwen3_moe", "llama_scaled"])
def test_folder_of_transformers_passes(name: str, tmp_path: Path) -> None:
    model = write_hf_folder(tmp_path, MODELS[name])
    family_of(model.model_type).check_hf_config(read_hf_config(tmp_path), model, source=SOURCE)


def test_hub_form_of_llama() -> None:
    """Older files: no head_dim, rope scaling beside theta, nothing said about tied embeddings."""
    model = dataclasses.replace(MODELS["llama_scaled"], head_dim=8)
    values = to_hf(model)
    del values["head_dim"], values["tie_word_embeddings"]
    family_of("llama").check_hf_config(values, model, source=SOURCE)


@pytest.mark.parametrize(
    ("key", "value"), [("vocab_size", 65), ("rope_theta", 1e6), ("num_experts", 8), ("tie_word_embeddings", True)]
)
def test_a_difference_names_key_and_both_values(key: str, value: Any) -> None:
    model = MODELS["qwen3_moe"]
    with pytest.raises(UserError, match=rf"model.{key} = {getattr(model, key)}: folder/config.json says {value}"):
        family_of("qwen3_moe").check_hf_config({**to_hf(model), key: value}, model, source=SOURCE)


def test_rope_scaling_must_agree() -> None:
    values = to_hf(MODELS["llama_scaled"])
    with pytest.raises(UserError, match=r"model.rope_scaling = None"):
        family_of("llama").check_hf_config(values, MODELS["llama"], source=SOURCE)
    values["rope_scaling"] = {"rope_type": "yarn", "factor": 4.0}
    with pytest.raises(UserError, match="rope_type = 'yarn'"):
        family_of("llama").check_hf_config(values, MODELS["llama"], source=SOURCE)


@pytest.mark.parametrize(("key", "value"), [("attention_bias", True), ("hidden_act", "gelu"), ("mlp_only_layers", [0])])
def test_what_is_not_built_here_is_refused(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"{key} = "):
        family_of("qwen3_moe").check_hf_config(
            {**to_hf(MODELS["qwen3_moe"]), key: value}, MODELS["qwen3_moe"], source=SOURCE
        )


def test_wrong_family_and_missing_key() -> None:
    with pytest.raises(UserError, match="says 'llama'"):
        family_of("qwen3").check_hf_config(to_hf(MODELS["llama"]), MODELS["qwen3"], source=SOURCE)
    values = to_hf(MODELS["qwen3"])
    del values["hidden_size"]
    with pytest.raises(UserError, match="has no hidden_size"):
        family_of("qwen3").check_hf_config(values, MODELS["qwen3"], source=SOURCE)
