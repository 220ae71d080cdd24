"""Predicts how long a run takes, from the measured rates that are nearest to it."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.planner.gpus import Gpu
from megatron_ssd.planner.plan import Samples, iteration_flops, segment_length
from megatron_ssd.planner.rates import Rate, nearest_rates


@dataclass(frozen=True)
class Duration:
    """Hours of a run at the fastest and at the slowest of ``rates``, which are not empty."""

    fastest: float
    slowest: float
    rates: list[Rate]  # the slowest first

    def __str__(self) -> str:
        return span(self.fastest, self.slowest)


def duration(config: RunConfig, samples: Samples | None, gpu: Gpu) -> Duration | None:
    """Hours of the run: its operations over the operations per second of each rate; None without a rate.

    Loading, checkpoints and evaluation do not count.
    """
    model = needed(config.model, "model")
    rates = nearest_rates(model, gpu, config.precision, segment_tokens=segment_length(config.training, samples))
    if not rates:
        return None
    flops = config.training.train_iters * iteration_flops(model, config.training, samples)
    slowest, fastest = (
        flops / (rate.tflops * 1e12 * config.parallel.world_size) / 3600 for rate in (rates[0], rates[-1])
    )
    return Duration(fastest=fastest, slowest=slowest, rates=rates)


def duration_text(config: RunConfig, samples: Samples | None, gpu: Gpu) -> str:
    """The hours of the run, and the rates that they come from."""
    found = duration(config, samples, gpu)
    if found is None:
        kind = "a mixture of experts" if needed(config.model, "model").is_moe else "a dense model"
        return f"hours: unknown, since planner/rates.py has no rate of {kind} on a GPU like {gpu.name}"
    return "\n".join([f"hours: {found}, at the nearest measured rates:", *(f"  {rate}" for rate in found.rates)])


def span(low: float, high: float) -> str:
    """For example ``61 to 88``, or one number if both are the same."""
    texts = [f"{value:.2g}" if value < 10 else f"{value:,.0f}" for value in (low, high)]
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)
