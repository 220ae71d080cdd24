"""Tests that scaled rotary frequencies equal those of transformers."""

import dataclasses

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_ssd.config.model import RopeScalingConfig
from megatron_ssd.models.build import scaled_frequencies


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScalingConfig(),
        RopeScalingConfig(factor=32.0),
        RopeScalingConfig(factor=4.0, low_freq_factor=0.5, high_freq_factor=2.0, original_max_position_embeddings=64),
        RopeScalingConfig(
            factor=2.5, low_freq_factor=2.0, high_freq_factor=16.0, original_max_position_embeddings=1000
        ),
    ],
)
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_frequencies_equal_those_of_transformers(scaling: RopeScalingConfig, theta: float) -> None:
    rope = {"rope_type": "llama3", "rope_theta": theta, **dataclasses.asdict(scaling)}
    config = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=2, max_position_embeddings=131072, rope_parameters=rope
    )
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / (theta ** (torch.arange(0, 128, 2, dtype=torch.float32) / 128))
    ours = scaled_frequencies(plain, scaling)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0.0)
    assert not torch.equal(ours, plain)
