"""Lists training speeds that others published or this project measured.

A speed is kept with what it depends on: model, GPU, number format, tokens of a micro batch and of a segment, layout.
``tflops`` counts as ``planner.flops`` does: useful operations, causal half of attention, no recomputation. It equals
what the sources print where they print it (NVIDIA's tables within 1 %). prime-rl prints tokens/s of all GPUs; its rows
of reinforcement learning are taken only for lengths without a row of supervised fine-tuning. The tables of NVIDIA and
NeMo AutoModel send the same number of tokens to every expert.

Left out: LoRA, dropped tokens, GB200 and GB300, and NeMo's table of long sequences, whose count of attention is not
stated (Llama 3 8B in FP8 on B200: 1,671 TFLOP/s at 8,192 tokens, 1,600 at 65,536 with CP4; Llama 2 7B on H100: 730 and
574; https://github.com/NVIDIA/NeMo/blob/9421f21af3bc/docs/source/performance/performance_long_sequence.md).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.planner.flops import active_weights
from megatron_ssd.planner.gpus import GPUS, Gpu

LENGTH_CLASSES = (8192, 32_768, 65_536)  # longest segment of each class, in tokens
_SIMILAR = 4  # models within this factor, in weights per token, count as the same size

_BRIDGE = "https://github.com/NVIDIA-NeMo/Megatron-Bridge/blob/067f987d/docs/performance-summary-archive.md"
_PRIME = "https://github.com/PrimeIntellect-ai/prime-rl/blob/30bf494f/benchmarks/results/BENCHMARKS.md"
_AUTOMODEL = "https://github.com/NVIDIA-NeMo/Automodel/blob/01926a5c/docs/performance-summary.md"
OWN = "docs/results/raw/first-h200.json"


@dataclass(frozen=True, kw_only=True)
class Rate:
    """One measured speed, per GPU."""

    model: str
    weights: float  # 10^9 weights that one token is multiplied by
    is_moe: bool = False
    gpu: str
    num_gpus: int
    numbers: str  # bf16, or the FP8 recipe
    micro_batch_tokens: int  # per replica
    segment_tokens: int
    layout: str
    tokens_per_second: float
    tflops: float
    source: str
    date: str  # year and month of the container, the measurement or the page

    @property
    def peak(self) -> float:
        """Dense peak of its GPU for its number format, in TFLOP/s."""
        gpu = GPUS[self.gpu]
        peak = gpu.bf16_tflops if self.numbers == "bf16" else gpu.fp8_tflops
        assert peak is not None
        return peak

    def __str__(self) -> str:
        return (
            f"{self.tflops:,.0f} TFLOP/s ({self.tflops / self.peak:.1%} of {self.peak:,.0f}), "
            f"{self.tokens_per_second:,.0f} tokens/s per GPU: {self.model}, {self.num_gpus} x {self.gpu}, "
            f"{self.numbers}, segments of {self.segment_tokens:,} tokens, {self.layout}, {self.date}, {self.source}"
        )


def _rates(model: str, weights: float, rows: str, *, is_moe: bool = False) -> list[Rate]:
    """Rates of one model, a line each: GPUs, format, micro batch, segment, tokens/s, TFLOP/s, date, source, layout."""
    sources = {"bridge": _BRIDGE, "prime": _PRIME, "automodel": _AUTOMODEL, "own": OWN}
    rates = []
    for row in rows.strip().splitlines():
        count, gpu, numbers, micro_batch, segment, tokens, tflops, date, source, *layout = row.split()
        rates.append(
            Rate(model=model, weights=weights, is_moe=is_moe, gpu=gpu, num_gpus=int(count), numbers=numbers,
                 micro_batch_tokens=int(micro_batch), segment_tokens=int(segment), layout=" ".join(layout),
                 tokens_per_second=float(tokens), tflops=float(tflops), source=sources[source], date=date)
        )  # fmt: skip
    return rates


# NVIDIA calls scaling per tensor FP8-CS or FP8 (here tensorwise). RL is reinforcement learning. The packed rows of this
# project hold samples of many lengths, and the segment is the length with the same operations per token.
RATES = [
    *_rates("qwen3_30b", 3.042, is_moe=True, rows="""
 8 B300 mxfp8      32768  4096 40769  938   2026-06 bridge    EP8
 8 B200 mxfp8      16384  4096 27136  619   2026-04 bridge    EP8
 8 B200 mxfp8       4096  4096  9691  223   2026-02 bridge    EP8
 8 B200 bf16       16384 16384  6960  261.5 2026-02 prime     FSDP8, full recompute
 8 B200 bf16       65536 65536  3001  286.8 2026-02 prime     FSDP8, full recompute, RL
 8 B200 bf16       65536 65536  2069  197.7 2026-02 prime     FSDP8, full recompute, RL, FlashAttention 2
16 H100 tensorwise  4096  4096  8960  206   2026-04 bridge    EP16
16 H100 tensorwise  4096  4096  5113  118   2026-02 bridge    PP2 VPP12 EP8
 8 H100 bf16       16384  4096 12040  277   2025-10 automodel FSDP8 EP8, DeepEP
 8 H200 bf16       16384 16384  4379  164.5 2026-02 prime     FSDP8, full recompute
 8 H200 bf16       65536 65536  1594  152.3 2026-02 prime     FSDP8, full recompute, RL
"""),
    *_rates("llama31_8b", 7.505, """
 8 B200 tensorwise 16384  8192 30624 1576   2025-11 bridge    data parallel
 8 B200 mxfp8      16384  8192 29521 1519   2025-11 bridge    data parallel
 8 H100 tensorwise  8192  8192 14451  744   2025-11 bridge    FSDP8
"""),
    *_rates("qwen3_4b", 4.022, """
 8 B200 bf16       16384 16384  8255  318.9 2026-02 prime     FSDP8, full recompute
 8 B200 bf16       65536 65536  3299  270.9 2026-02 prime     FSDP8, full recompute
 8 H200 bf16       16384 16384  6643  256.6 2026-02 prime     FSDP8, full recompute
 8 H100 bf16       16384 16384  6215  240.1 2026-02 prime     FSDP8, full recompute
 8 H200 bf16       65536 65536  3693  303.3 2026-02 prime     FSDP8, full recompute, RL
 8 H100 bf16       65536 65536  3621  297.4 2026-02 prime     FSDP8, full recompute, RL
"""),
    *_rates("qwen3_1.7b", 1.720, """
 1 H200 bf16        8192  8192 33983  446.6 2026-11 own       one GPU
"""),
    *_rates("qwen3_1.7b, 12 layers", 0.671, """
 1 H200 bf16       65536  2540 103093 453.7 2026-11 own       one GPU, packed
 1 H200 bf16       65536  2540 80343  353.6 2026-11 own       one GPU, packed, full recompute
 1 H200 bf16       65536 65536 35525  486.4 2026-11 own       one GPU
"""),
]  # fmt: skip


def nearest_rates(model: ModelConfig, gpu: Gpu, precision: PrecisionConfig, *, segment_tokens: int) -> list[Rate]:
    """The rates to plan with, the slowest first; empty if nothing is known for this family on this chip.

    They are of the same family (dense, or experts) on the same generation of GPUs. Of these, the nearest count: first
    by the length class of the segments, then by number format (FP8 or not), by GPU, and by model size. If there is only
    one at the smallest distance, those at the next distance count too, so that there is a range.
    """
    weights, wanted = active_weights(model) / 1e9, _length_class(segment_tokens)

    def distance(rate: Rate) -> tuple[int, bool, bool, bool]:
        return (
            abs(_length_class(rate.segment_tokens) - wanted),
            (rate.numbers == "bf16") != (precision.fp8 is None),
            rate.gpu != gpu.name,
            not 1 / _SIMILAR <= rate.weights / weights <= _SIMILAR,
        )

    known = [r for r in RATES if r.is_moe == model.is_moe and GPUS[r.gpu].capability[0] == gpu.capability[0]]
    nearest: list[Rate] = []
    for _, group in itertools.groupby(sorted(known, key=distance), key=distance):
        nearest += group
        if len(nearest) > 1:
            break
    return sorted(nearest, key=lambda rate: rate.tflops)


def _length_class(tokens: int) -> int:
    return next((number for number, longest in enumerate(LENGTH_CLASSES) if tokens <= longest), len(LENGTH_CLASSES) - 1)
