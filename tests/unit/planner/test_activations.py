"""Tests that the planned activations of a layer equal what autograd saves.

The layers are Megatron-Core's local ones on a CPU. Sequences have 1,024 tokens, for which attention uses PyTorch's
fused kernel as on a GPU. Not covered, because these layers need CUDA: TransformerEngine's tensors, FP8, grouped experts
and recomputed norms.
"""

import dataclasses

import pytest
import torch

from megatron_ssd.config.model import ModelConfig, MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import Fp8Config, PrecisionConfig
from megatron_ssd.models.build import build_model
from megatron_ssd.planner.memory import kept_bytes, layer_tensors, layers_in_flight, working_bytes
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import process_groups
from tests.helpers.devices import without_gpu
from tests.helpers.training_run import CPU, DEEP, DENSE, EXACT, MOE

LENGTH = 1024
ONE = ParallelConfig()
# The planner leaves out the root mean squares of norms and the indices of routed tokens: 1.4 % of the narrowest case.
TOLERANCE = 0.02
LLAMA = dataclasses.replace(DENSE, model_type="llama", tie_word_embeddings=False, name="llama")
MODULES = {"dense": ("mlp",), "llama": ("core_attn", "mlp"), "moe": ("core_attn", "moe")}


def saved_bytes(model: ModelConfig, precision: PrecisionConfig, *, num_layers: int) -> int:
    """Bytes that autograd saves in one forward pass besides the weights. Each storage counts once."""
    model = dataclasses.replace(model, num_hidden_layers=num_layers, max_position_embeddings=LENGTH)
    saved: dict[int, torch.Tensor] = {}
    with process_groups(ONE, device=prepare_device(CPU)):
        (chunk,) = build_model(model, ONE, precision, device="cpu")
        weights = {parameter.untyped_storage().data_ptr() for parameter in chunk.parameters()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        tokens = torch.arange(LENGTH)[None] % model.vocab_size
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = chunk(tokens, torch.arange(LENGTH)[None], None, labels=tokens)
        del loss
        # A tensor that was discarded after saving has an empty storage.
        return sum(t.untyped_storage().nbytes() for pointer, t in saved.items() if pointer not in weights)


@without_gpu
@pytest.mark.parametrize("model", [DENSE, LLAMA, MOE], ids=lambda model: model.name)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_layer_saves_the_planned_bytes(model: ModelConfig, dtype: str, recompute: str) -> None:
    precision = dataclasses.replace(
        EXACT, params_dtype=dtype, recompute=recompute, recompute_modules=MODULES[model.name]
    )
    two, four = (saved_bytes(model, precision, num_layers=n) for n in (2, 4))
    listed = kept_bytes(layer_tensors(model, ONE, precision, MoeConfig()), precision)
    assert listed * LENGTH == pytest.approx((four - two) / 2, rel=TOLERANCE)


def test_more_recomputation_keeps_less_memory_and_needs_more_working_memory() -> None:
    settings = [
        {"recompute": "none"},
        {"recompute": "selective", "recompute_modules": ("layernorm", "moe_act")},
        {"recompute": "selective", "recompute_modules": ("layernorm", "moe")},
        {"recompute": "full"},
    ]
    for fp8 in (None, Fp8Config(recipe="mxfp8")):
        kept, working = [], []
        for setting in settings:
            precision = PrecisionConfig(fp8=fp8, **setting)  # type: ignore[arg-type]
            kept.append(kept_bytes(layer_tensors(MOE, ONE, precision, MoeConfig()), precision))
            working.append(working_bytes(MOE, ONE, precision, MoeConfig()))
        assert kept == sorted(kept, reverse=True)
        assert working == sorted(working)
    imbalanced = kept_bytes(layer_tensors(MOE, ONE, PrecisionConfig(), MoeConfig()), PrecisionConfig(), imbalance=2.0)
    assert imbalanced > kept_bytes(layer_tensors(MOE, ONE, PrecisionConfig(), MoeConfig()), PrecisionConfig())


def test_exchanging_heads_keeps_the_output_twice() -> None:
    ring, heads = (
        kept_bytes(layer_tensors(MOE, layout, PrecisionConfig(), MoeConfig()), PrecisionConfig())
        for layout in (
            ParallelConfig(world_size=2, context_parallel_size=2, cp_comm_type=kind) for kind in ("p2p", "a2a")
        )
    )
    assert heads - ring == 2 * MOE.num_attention_heads * MOE.head_dim


@pytest.mark.parametrize(
    ("sizes", "microbatches", "expected"),
    [
        ({}, 8, [4]),
        ({"pipeline_model_parallel_size": 2}, 8, [4, 2]),
        ({"pipeline_model_parallel_size": 4}, 2, [2, 2, 2, 1]),
        ({"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}, 8, [5, 3]),
    ],
)
def test_layers_in_flight_equal_hand_counts(sizes: dict[str, int], microbatches: int, expected: list[int]) -> None:
    layout = ParallelConfig(world_size=4, **sizes)
    stages = range(layout.pipeline_model_parallel_size)
    assert [layers_in_flight(DEEP, layout, stage=stage, num_microbatches=microbatches) for stage in stages] == expected
