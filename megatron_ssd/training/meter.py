"""Measures the performance of each iteration.

Expert loads count the tokens of samples as the routers assign them, prompts included and padding left out. In each
layer they add up to these tokens of the global batch x experts per token, in any layout. A forward pass without
gradients (validation, the first pass of recomputed layers) is not counted, so that each token counts once.

Shape suffixes: T tokens of a rank, L layers of the full model, E experts of a layer.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.models.routers import routers
from megatron_ssd.planner.flops import flops_of
from megatron_ssd.planner.gpus import peak_tflops
from megatron_ssd.training.data import BatchSource
from megatron_ssd.training.metrics import IterationMetrics
from megatron_ssd.training.step import StepResult


class ThroughputMeter:
    """Measures the iterations of a run. Every rank has one and calls it in lockstep."""

    def __init__(
        self, model: ModelConfig, precision: PrecisionConfig, chunks: Sequence[torch.nn.Module], source: BatchSource
    ) -> None:
        self._model = model
        self._source = source
        self._peak = peak_tflops(torch.cuda.get_device_name(), precision) if source.device == "cuda" else None
        self._experts: ExpertLoadCounter | None = None
        if model.num_experts is not None:
            self._experts = ExpertLoadCounter(chunks, num_layers=model.num_hidden_layers, num_experts=model.num_experts)
        self._started = 0.0

    def start(self) -> None:
        """Begin an iteration."""
        if self._experts is not None:
            self._experts.start()
        self._started = time.perf_counter()

    def stop(self, iteration: int, result: StepResult) -> IterationMetrics:
        """End an iteration."""
        seconds = time.perf_counter() - self._started
        gpus, lengths = dist.get_world_size(), self._source.sample_lengths(iteration)
        tokens = int(lengths.sum())
        rate = tokens / seconds
        tflops = flops_of(self._model, lengths.tolist()) / seconds / gpus / 1e12
        return IterationMetrics(
            iteration=iteration,
            samples=self._source.sample_digest(iteration),
            **dataclasses.asdict(result),
            tokens=tokens,
            computed_tokens=sum(plan.num_tokens for row in self._source.plan(iteration) for plan in row),
            tokens_per_second=round(rate, 1),
            tokens_per_second_per_gpu=round(rate / gpus, 1),
            tflops_per_second_per_gpu=round(tflops, 6),
            mfu=None if self._peak is None else round(tflops / self._peak, 4),
            seconds=round(seconds, 4),
            experts=None if self._experts is None else expert_load(self._experts.counts()),
        )


class ExpertLoadCounter:
    """Counts the tokens of each expert as the routers of this rank assign them.

    Args:
        chunks: model chunks of this rank, of a mixture of experts.
    """

    def __init__(self, chunks: Sequence[torch.nn.Module], *, num_layers: int, num_experts: int) -> None:
        self._shape = (num_layers, num_experts)
        self._counts: dict[int, Tensor] = {}
        for router in routers(chunks):
            router.register_forward_hook(self._count)

    def start(self) -> None:
        """Reset the counts; called before an iteration."""
        self._counts.clear()

    def counts(self) -> Tensor:
        """[L, E] tokens per expert since ``start``, over all ranks, which must all call this; int64 on the CPU."""
        assert self._counts, "no router ran since start()"
        device = next(iter(self._counts.values())).device
        counts_LE = torch.zeros(self._shape, dtype=torch.int64, device=device)
        for layer, counts_E in self._counts.items():
            counts_LE[layer] = counts_E
        dist.all_reduce(counts_LE)
        return counts_LE.cpu()

    def _count(self, router: Any, inputs: tuple[Tensor, Tensor], outputs: tuple[Tensor, Tensor]) -> None:
        if not torch.is_grad_enabled():
            return
        (_, padding_mask), (_, routing_map_TE) = inputs, outputs
        layer = router.layer_number - 1
        counts_E = (routing_map_TE & ~padding_mask.reshape(-1, 1)).sum(dim=0)
        self._counts[layer] = self._counts[layer] + counts_E if layer in self._counts else counts_E


def expert_load(counts_LE: Tensor) -> dict[str, Any]:
    """Columns of the metrics; every layer must have tokens.

    Loads are relative to the mean of their layer: 1 is an even spread, 0 an expert without tokens. Layers are counted
    from 0.
    """
    num_experts = counts_LE.shape[1]
    load_LE = counts_LE / counts_LE.sum(dim=1, keepdim=True) * num_experts
    largest, smallest = int(load_LE.argmax()), int(load_LE.argmin())
    return {
        "expert_load_max": round(float(load_LE.flatten()[largest]), 4),
        "expert_load_max_layer": largest // num_experts,
        "expert_load_min": round(float(load_LE.flatten()[smallest]), 4),
        "expert_load_min_layer": smallest // num_experts,
        "experts_unused": int((counts_LE == 0).sum()),
    }
