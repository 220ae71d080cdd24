"""Counts the floating point operations of a training step, to be compared with the peak of a GPU.

A product of [m, k] and [k, n] is 2 m k n operations; its backward pass takes two such products. Only matrix products
count: projections, scores and weighted values of attention, router, experts, output layer. Norms, softmax, activations
and rotary embedding (below one per cent at these widths) do not count. Recomputation does not count either, so that
utilisation by this count is that of useful work.

Attention is counted as the causal half, with the diagonal, per packed segment: n (n + 1) / 2 pairs of a query and a key
for a segment of n tokens. Of a mixture of experts, only the experts that a token is routed to count.

For example, one token of Qwen3-30B-A3B: a layer's projections hold 2048 x (4096 + 2 x 512) + 4096 x 2048 = 18.9 M
weights, its router 0.26 M, its eight experts 8 x 3 x 2048 x 768 = 37.7 M; 48 layers and the output layer of 311 M make
3.04 G weights, 18.2 GFLOP forward and backward, without attention's pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.precision import PrecisionConfig

_PASSES = 3  # one forward and two backward, in products of the same size


def flops_of(model: ModelConfig, segment_lengths: Iterable[int]) -> float:
    """Operations, forward and backward, for segments of these lengths, each causal within itself.

    Args:
        segment_lengths: tokens of each segment. Leave out padding to count useful work only.
    """
    tokens = pairs = 0
    for length in segment_lengths:
        tokens += length
        pairs += length * (length + 1) // 2
    return _PASSES * (2.0 * active_weights(model) * tokens + _operations_per_pair(model) * pairs)


def active_weights(model: ModelConfig) -> int:
    """Weights that one token is multiplied by: without the embedding (a look-up) and the experts not chosen."""
    q_size = model.num_attention_heads * model.head_dim
    kv_size = model.num_key_value_heads * model.head_dim
    projections = model.hidden_size * (2 * q_size + 2 * kv_size)
    if model.num_experts is not None:
        assert model.num_experts_per_tok is not None
        assert model.moe_intermediate_size is not None
        experts = model.num_experts_per_tok * 3 * model.hidden_size * model.moe_intermediate_size
        feed_forward = model.hidden_size * model.num_experts + experts
    else:
        feed_forward = 3 * model.hidden_size * model.intermediate_size
    return model.num_hidden_layers * (projections + feed_forward) + model.hidden_size * model.vocab_size


def _operations_per_pair(model: ModelConfig) -> float:
    """Forward operations for one query and one key that it sees: a score and a weighted value in every head."""
    return 2.0 * 2 * model.num_attention_heads * model.head_dim * model.num_hidden_layers


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Figures of one GPU, dense (without sparsity). ``fp8_tflops`` is None if it has no FP8 units."""

    name: str
    capability: tuple[int, int]  # compute capability
    memory_gb: float  # 10^9 bytes, as the data sheet counts
    bf16_tflops: float
    fp8_tflops: float | None

    def peak_tflops(self, precision: PrecisionConfig) -> float | None:
        """Peak for the matrix products of a bf16 run, with or without FP8; None without FP8 units."""
        return self.fp8_tflops if precision.fp8 else self.bf16_tflops


# From NVIDIA's data sheets of the SXM modules. They print figures "with sparsity"; half of those is dense.
#   A100: "NVIDIA A100 Tensor Core GPU" (312 dense BF16, 80 GB). H100, H200: "NVIDIA H100 / H200 Tensor Core GPU" (1,979
#   and 3,958 sparse; 80 and 141 GB). B200, B300: "NVIDIA HGX Platform" (per GPU 4.5 and 9 PFLOPS sparse; a board of
#   eight holds 1.4 and 2.1 TB).
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="A100", capability=(8, 0), memory_gb=80, bf16_tflops=312, fp8_tflops=None),
        Gpu(name="H100", capability=(9, 0), memory_gb=80, bf16_tflops=989.5, fp8_tflops=1979),
        Gpu(name="H200", capability=(9, 0), memory_gb=141, bf16_tflops=989.5, fp8_tflops=1979),
        Gpu(name="B200", capability=(10, 0), memory_gb=180, bf16_tflops=2250, fp8_tflops=4500),
        Gpu(name="B300", capability=(10, 3), memory_gb=268, bf16_tflops=2250, fp8_tflops=4500),
    )
}
_SLOWER_FORMS = ("PCIe", "NVL", "40GB", "MIG")  # variants of the same chips with other figures


def gpu_of(device_name: str) -> Gpu | None:
    """The GPU with this driver name, for example ``NVIDIA H100 80GB HBM3``; None if it is not in the table."""
    if any(form.lower() in device_name.lower() for form in _SLOWER_FORMS):
        return None
    words = device_name.replace("-", " ").split()
    return next((gpu for name, gpu in GPUS.items() if name in words), None)


def peak_tflops(device_name: str, precision: PrecisionConfig) -> float | None:
    """Dense peak of the device for the matrix products of ``precision``; None if it is not known.

    FP8 runs are compared with the FP8 peak although attention and the output layer stay in bf16.
    """
    gpu = gpu_of(device_name)
    return None if gpu is None or precision.params_dtype != "bf16" else gpu.peak_tflops(precision)
