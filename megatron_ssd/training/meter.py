"""From the result of an iteration and a clock to what is logged of it: rates, utilisation, expert load, sample ids."""

from __future__ import annotations

import dataclasses
import time

import torch
import torch.distributed as dist

from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.planner.flops import flops_of
from megatron_ssd.runtime.gpus import peak_tflops
from megatron_ssd.training.data import BatchSource
from megatron_ssd.training.expert_load import LoadRecorder
from megatron_ssd.training.metrics import IterationMetrics
from megatron_ssd.training.state import TrainingState
from megatron_ssd.training.step import StepResult


class Meter:
    """Measures the iterations of one run. Every rank has one and calls it alike."""

    def __init__(self, run: RunConfig, state: TrainingState, source: BatchSource, *, device: str) -> None:
        self._model = needed(run.model, "model", fix="choose one with model=NAME")
        self._source = source
        self._positions = run.training.global_batch_size * run.training.seq_length
        self._peak = peak_tflops(torch.cuda.get_device_name(), run.precision) if device == "cuda" else None
        self._experts: LoadRecorder | None = None
        if self._model.num_experts is not None:
            self._experts = LoadRecorder(
                state.chunks, num_layers=self._model.num_hidden_layers, num_experts=self._model.num_experts
            )
        self._started = 0.0

    def start(self) -> None:
        """An iteration begins."""
        if self._experts is not None:
            self._experts.start()
        self._started = time.perf_counter()

    def stop(self, iteration: int, result: StepResult) -> IterationMetrics:
        """The iteration has ended with ``result``."""
        seconds = time.perf_counter() - self._started
        gpus = dist.get_world_size()
        rate = self._positions / seconds
        tflops = flops_of(self._model, self._source.sample_lengths(iteration).tolist()) / seconds / gpus / 1e12
        return IterationMetrics(
            iteration=iteration,
            samples=self._source.sample_digest(iteration),
            **dataclasses.asdict(result),
            tokens=self._positions,
            tokens_per_second=round(rate, 1),
            tokens_per_second_per_gpu=round(rate / gpus, 1),
            tflops_per_second_per_gpu=round(tflops, 6),
            mfu=None if self._peak is None else round(tflops / self._peak, 4),
            seconds=round(seconds, 4),
            experts=None if self._experts is None else self._experts.load().row(),
        )
