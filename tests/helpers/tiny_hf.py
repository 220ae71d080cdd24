"""Tiny Hugging Face models, which transformers writes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from megatron_ssd.config.model import ModelConfig, ModelType, RopeScalingConfig
from megatron_ssd.export.reference import reference_logits
from megatron_ssd.models.architectures import to_hf_config
from tests.helpers.paths import ROOT

_SHAPE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 48, "vocab_size": 64, "max_position_embeddings": 512, "rope_theta": 10000.0,
}  # fmt: skip
_EXPERTS: dict[str, Any] = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True,
}  # fmt: skip

_ODD: dict[str, Any] = {**_SHAPE, "vocab_size": 63}  # not divisible by an even number of ranks
_OTHER_SCALING = RopeScalingConfig(
    factor=4.0, low_freq_factor=0.5, high_freq_factor=2.0, original_max_position_embeddings=64
)


def drawn_model(name: str, model_type: ModelType, **fixed: Any) -> ModelConfig:
    """A dense model with a random shape that two-way tensor and pipeline parallelism can split.

    The shape follows from the name and from MEGATRON_SSD_TEST_SEED, which tests/conftest.py sets.
    """
    random = np.random.default_rng([int(os.environ["MEGATRON_SSD_TEST_SEED"]), *name.encode()])

    def draw(low: int, high: int) -> int:
        return int(random.integers(low, high + 1))

    groups, head_dim = 2 * draw(1, 2), 2 * draw(4, 8)
    heads = groups * draw(1, 2)
    scalings = [
        None,
        RopeScalingConfig(rope_type="linear", factor=draw(1, 8)),
        RopeScalingConfig(factor=draw(1, 8), original_max_position_embeddings=2 ** draw(4, 8)),
    ]
    shape: dict[str, Any] = {
        "hidden_size": heads * (head_dim if model_type == "qwen2" else 2 * draw(2, 8)),
        "num_hidden_layers": 2 * draw(1, 2), "num_attention_heads": heads, "num_key_value_heads": groups,
        "head_dim": head_dim, "intermediate_size": 2 * draw(8, 40), "vocab_size": draw(64, 99),
        "max_position_embeddings": 512, "rms_norm_eps": (1e-5, 1e-6)[draw(0, 1)], "rope_theta": 10.0 ** draw(4, 6),
        "rope_scaling": scalings[draw(0, 2)], "tie_word_embeddings": bool(draw(0, 1)),
    }  # fmt: skip
    return ModelConfig(name=name, model_type=model_type, **shape | fixed)


MODELS = {
    "qwen3": ModelConfig(name="qwen3", model_type="qwen3", **_SHAPE),
    "qwen3_tied": ModelConfig(name="qwen3_tied", model_type="qwen3", tie_word_embeddings=True, **_SHAPE),
    "qwen3_odd": ModelConfig(name="qwen3_odd", model_type="qwen3", **_ODD | {"num_key_value_heads": 4}),
    "qwen3_odd_tied": ModelConfig(name="qwen3_odd_tied", model_type="qwen3", tie_word_embeddings=True, **_ODD),
    "qwen3_moe": ModelConfig(name="qwen3_moe", model_type="qwen3_moe", **_SHAPE, **_EXPERTS),
    "qwen3_moe_odd": ModelConfig(
        name="qwen3_moe_odd", model_type="qwen3_moe",
        **_ODD | {"num_key_value_heads": 1}, **_EXPERTS | {"norm_topk_prob": False, "num_experts_per_tok": 3},
    ),
    "llama": ModelConfig(name="llama", model_type="llama", **_SHAPE),
    "llama_tied": ModelConfig(name="llama_tied", model_type="llama", tie_word_embeddings=True, **_SHAPE),
    "llama_scaled": ModelConfig(name="llama_scaled", model_type="llama", rope_scaling=RopeScalingConfig(), **_SHAPE),
    "llama_scaled_odd": ModelConfig(
        name="llama_scaled_odd", model_type="llama", rope_scaling=_OTHER_SCALING, **_SHAPE | {"rope_theta": 5e5}
    ),
    "llama_linear": ModelConfig(
        name="llama_linear", model_type="llama", **_SHAPE,
        rope_scaling=RopeScalingConfig(rope_type="linear", factor=4.0),
    ),
    "qwen2_drawn": drawn_model("qwen2_drawn", "qwen2", tie_word_embeddings=False),
    "qwen2_tied_drawn": drawn_model("qwen2_tied_drawn", "qwen2", tie_word_embeddings=True),
    "mistral_drawn": drawn_model("mistral_drawn", "mistral", tie_word_embeddings=False),
}  # fmt: skip


def write_hf_config(folder: Path, model: ModelConfig) -> str:
    """Write ``config.json`` of ``model`` without weights to ``folder``, and return the override with its path."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_hf_config(model, dtype="float32")))
    return f"model.path={folder}"


def write_hf_folder(
    folder: Path, model: ModelConfig, *, dtype: torch.dtype = torch.float32, max_shard_size: str = "5GB"
) -> ModelConfig:
    """Save random weights of ``model`` to ``folder`` and return ``model`` with that path. No weight is all ones."""
    config = transformers.AutoConfig.for_model(**to_hf_config(model, dtype=str(dtype).removeprefix("torch.")))
    torch.manual_seed(0)
    hf_model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for weight in hf_model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    hf_model.save_pretrained(folder, max_shard_size=max_shard_size)
    return dataclasses.replace(model, path=str(folder))


def write_tokenizer(folder: Path, size: int) -> None:
    """Save a word-level tokenizer with ``size`` entries."""
    vocabulary = {"<s>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, size)}}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="<s>")), bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(folder)


def save_reference_logits(root: Path, names: Iterable[str], tokens_BS: torch.Tensor) -> None:
    """Write ``root/tokens.npy``, and transformers' fp32 logits of each model as ``root/NAME/logits.npy``.

    The logits are computed in another process, in which the CPU adaptation for Megatron-Core is not active.
    """
    np.save(root / "tokens.npy", tokens_BS.numpy())
    command = [sys.executable, "-m", "tests.helpers.tiny_hf", str(root), *names]
    # The models are too small for several threads.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, timeout=300)


def main(root: Path, names: Iterable[str]) -> None:
    """Write the logits of these models."""
    for name in names:
        np.save(root / name / "logits.npy", reference_logits(root / name, np.load(root / "tokens.npy")))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
