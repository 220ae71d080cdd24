"""Logits of Hugging Face models on a GPU equal transformers', in both layer specs and expert layouts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from megatron_ssd.config.model import MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.models.build import build_model
from megatron_ssd.models.hf_checkpoint import load_hf_weights
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import process_groups
from tests.gpu.short_runs import DEVICE
from tests.helpers.tiny_hf import MODELS, write_hf_folder

ONE, LENGTH = ParallelConfig(), 48


@pytest.mark.parametrize("fused", [False, True], ids=["local", "TransformerEngine"])
@pytest.mark.parametrize(
    ("name", "grouped"),
    [("qwen3_tied", True), ("qwen3_moe", True), ("qwen3_moe", False), ("llama_scaled", True), ("qwen2_drawn", True),
     ("mistral_drawn", True)],
    ids=lambda value: {True: "grouped", False: "sequential"}.get(value, value),
)  # fmt: skip
def test_logits_equal_transformers(
    name: str, grouped: bool, fused: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if fused:
        request.getfixturevalue("transformer_engine")
    model, device = write_hf_folder(tmp_path, MODELS[name]), DEVICE.device
    positions = torch.arange(LENGTH, device=device)[None]
    tokens = positions % model.vocab_size
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).to(device)
    with torch.no_grad():
        expected = reference(tokens).logits
    # Fused attention does not support fp32. In bf16, logits of a few units differ by hundredths.
    precision = PrecisionConfig(params_dtype="bf16" if fused else "fp32", transformer_engine=fused)
    with process_groups(ONE, device=prepare_device(DEVICE, precision)):
        chunks = build_model(model, ONE, precision, moe=MoeConfig(grouped_gemm=grouped), device=device, seed=None)
        load_hf_weights(chunks, model, ONE, tmp_path)
        with torch.no_grad():
            logits = chunks[0].eval()(tokens, positions, None)
    tolerance = 0.05 * float(expected.abs().max()) if fused else 1e-3
    assert float((logits.float() - expected).abs().max()) < tolerance
