"""Tests how YAML values become frozen dataclasses, and the error messages for invalid values."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from megatron_ssd.config.build import RENAMED, build, keys_at
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import ConfigError
from tests.helpers.errors import config_error

TINY = {
    "name": "t", "model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128, "vocab_size": 512,
    "max_position_embeddings": 65536,
}  # fmt: skip


def test_without_values_every_key_has_its_default() -> None:
    assert build(RunConfig, {}) == RunConfig()


def test_the_result_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        build(RunConfig, {}).seed = 1  # type: ignore[misc]


def test_lists_become_tuples_and_integers_floats() -> None:
    temperatures = build(RunConfig, {"evaluation": {"temperatures": [1, 1.5], "top_ps": [1]}}).evaluation.temperatures
    assert temperatures == (1.0, 1.5)
    assert isinstance(temperatures[0], float)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"sed": 1}, ["sed = 1", "no such key", "did you mean seed?"]),
        ({"parallel": {"tensr_model_parallel_size": 2}}, ["did you mean parallel.tensor_model_parallel_size?"]),
        ({"seed": "1"}, ["seed = '1'", "an integer", "the default is 0"]),
        ({"seed": 1.5}, ["seed = 1.5", "an integer"]),
        ({"dry_run": "yes"}, ["dry_run = 'yes'", "true or false"]),
        ({"objective": "rl"}, ["objective = 'rl'", "sft or pretrain"]),
        ({"parallel": 3}, ["parallel = 3", "a section", "parallel.world_size=VALUE"]),
        ({"training": {"profile_steps": 11}}, ["profile_steps = 11", "a pair [a, b] of integers"]),
        ({"training": {"profile_steps": [11]}}, ["profile_steps = [11]", "a pair [a, b] of integers"]),
        ({"precision": {"recompute_modules": ["x"]}}, ["recompute_modules = ['x']", "a list of core_attn, "]),
        ({"precision": {"recompute_modules": "moe"}}, ["write precision.recompute_modules=[moe]"]),
        ({"benchmark": {"sets": {"a": 1}}}, ["benchmark.sets.a = 1"]),
        ({"model": {"name": "x"}}, ["model.model_type is not set"]),
        ({"model": {**TINY, "vocab_siz": 3}}, ["model.vocab_siz = 3", "did you mean model.vocab_size?"]),
        ({"model": {**TINY, "num_key_value_heads": 3}}, ["model.num_key_value_heads = 3", "must divide", "(4)"]),
        ({"model": {**TINY, "num_experts": 4}}, ["model.model_type = qwen3", "num_experts"]),
        (
            {"parallel": {"world_size": 3, "tensor_model_parallel_size": 2}},
            ["parallel.world_size = 3", "multiple of tensor x pipeline x context parallel size (2)"],
        ),
        ({"parallel": {"sequence_parallel": True}}, ["sequence_parallel = true", "tensor_model_parallel_size > 1"]),
        (
            {
                "model": TINY,
                "parallel": {"world_size": 3, "tensor_model_parallel_size": 3},
                "training": {"global_batch_size": 3},
            },
            ["tensor_model_parallel_size = 3", "must divide model.num_attention_heads (4)"],
        ),
        (
            {"training": {"global_batch_size": 3, "micro_batch_size": 2, "packing": "none"}},
            ["global_batch_size = 3", "multiple"],
        ),
        ({"training": {"packing": "greedy"}}, ["packing = greedy", "batch_unit = packed_sequences"]),
        ({"training": {"packing": "none", "tokens_per_micro_batch": 65536}}, ["only for packed samples"]),
        ({"training": {"tokens_per_micro_batch": 100}}, ["at least training.seq_length (65536)"]),
        ({"optimizer": {"min_lr": 1.0}}, ["optimizer.min_lr = 1.0", "between 0 and optimizer.lr"]),
        ({"optimizer": {"lr_warmup_iters": 5000}}, ["lr_warmup_iters = 5000", "below training.train_iters (2500)"]),
        ({"cluster": {"device": "cpu"}}, ["precision.transformer_engine", "cpu"]),
        ({"contamination": {"sets": {"mine": {"pth": "x"}}}}, ["contamination.sets.mine.pth", "sets.mine.path?"]),
        ({"contamination": {"sets": {"mine": {"path": "x"}}}}, ["contamination.sets.mine.columns = []", "[prompt]"]),
        ({"contamination": {"sets": {"mine": {"columns": ["x"]}}}}, ["contamination.sets.mine.path = null"]),
        ({"evaluation": {"ks": [50]}}, ["evaluation.ks = [50]", "num_samples"]),
        ({"evaluation": {"ks": [1, 20]}}, ["evaluation.ks = [1, 20]", "between 1 and evaluation.num_samples (10)"]),
        ({"evaluation": {"ks": []}}, ["evaluation.ks = []", "num_samples"]),
        ({"evaluation": {"ks": [0]}}, ["evaluation.ks = [0]", "num_samples"]),
        ({"evaluation": {"num_samples": 0}}, ["evaluation.num_samples = 0", "must be positive"]),
        ({"sampling": {"train": {"top_p": 0}, "eval": {}}}, ["top_p = 0", "above 0"]),
        ({"filters": {"proxy_band": [0.9, 0.1]}}, ["filters.proxy_band = [0.9, 0.1]", "low < high"]),
        ({"filters": {"loop": {"min_repeat": 3}}}, ["did you mean filters.loop.min_repeats?"]),
        (
            {"filters": {"length_capped": "mask_end"}, "preprocess": {"ids": "retokenized"}},
            ["filters.length_capped = mask_end", "ids as sampled"],
        ),
        ({"prompt": {"mode": "raw", "enable_thinking": False}}, ["prompt.enable_thinking = false", "prompt.mode=chat"]),
    ],
)  # fmt: skip
def test_an_invalid_value_is_one_line_with_key_value_rule_and_fix(values: dict[str, Any], parts: list[str]) -> None:
    with config_error(*parts):
        build(RunConfig, values)


@pytest.mark.parametrize(
    ("values", "fix"),
    [
        ({"training": {"old_name": 1}}, "did you mean training.seq_length?"),
        ({"old_section": {"lr": 1.0}}, "did you mean optimizer?"),
        ({"contamination": {"sets": {"mine": {"old": 1}}}}, "did you mean contamination.sets.mine.path?"),
    ],
)
def test_a_renamed_key_is_refused_with_its_new_name(
    values: dict[str, Any], fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {
        "training.old_name": "training.seq_length",
        "old_section": "optimizer",
        "contamination.sets.mine.old": "contamination.sets.mine.path",
    }
    monkeypatch.setattr("megatron_ssd.config.build.RENAMED", table)
    with pytest.raises(ConfigError) as caught:
        build(RunConfig, values)
    assert "there is no such key" in str(caught.value)
    assert str(caught.value).endswith(fix)


def test_new_names_exist_and_old_ones_do_not() -> None:
    def exists(key: str) -> bool:
        *section, name = key.split(".")
        return name in keys_at(section)

    assert [new for new in RENAMED.values() if not exists(new)] == []
    assert [old for old in RENAMED if exists(old)] == []


@pytest.mark.parametrize(
    ("evaluation", "measured"),
    [
        ({}, (1, 5, 10)),
        ({"num_samples": 4}, (1,)),
        ({"num_samples": 20}, (1, 5, 10, 20)),
        ({"num_samples": 64}, (1, 5, 10, 20)),
        ({"ks": [5, 1, 5]}, (1, 5)),
        ({"num_samples": 64, "ks": [64]}, (64,)),
    ],
)
def test_by_default_every_k_that_the_samples_allow_is_measured(
    evaluation: dict[str, Any], measured: tuple[int, ...]
) -> None:
    assert build(RunConfig, {"evaluation": evaluation}).evaluation.measured_ks == measured


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 4 * (64 * (2 * 64 + 2 * 32) + 32 + 3 * 64 * 128 + 128) + 2 * 512 * 64 + 64),
        ({"tie_word_embeddings": True}, 4 * (64 * (2 * 64 + 2 * 32) + 32 + 3 * 64 * 128 + 128) + 512 * 64 + 64),
    ],
)
def test_parameters_are_counted_from_the_model_shape(changes: dict[str, Any], expected: int) -> None:
    model = build(RunConfig, {"model": {**TINY, **changes}}).model
    assert model is not None
    assert model.num_parameters() == expected
