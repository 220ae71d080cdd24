"""PyTorch's AdamW under Megatron-Core's checkpoints.

Megatron-Core 0.16 is at home with TransformerEngine's and apex's Adam, which count steps by group. PyTorch's, which
takes over where neither is installed, counts by parameter, and loading trips over that in three places. Everything here
leaves other optimizers alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor


def allocate(optimizer: MegatronOptimizer) -> None:
    """Give each parameter an empty state, as its first update would: saving and loading read it before there is one."""
    for adam in _adams(optimizer):
        for group in adam.param_groups:
            for parameter in group["params"]:
                adam.state[parameter] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


@contextmanager
def loadable(optimizer: MegatronOptimizer) -> Iterator[None]:
    """Within, ``optimizer.load_state_dict`` works; after, each parameter has a step counter of its own."""
    distributed = [inner for inner in optimizer.chained_optimizers if isinstance(inner, DistributedOptimizer)]
    for inner in distributed:
        if isinstance(inner.optimizer, torch.optim.AdamW):
            original = inner._set_main_param_and_optimizer_states
            inner._set_main_param_and_optimizer_states = functools.partial(_set_with_step, inner, original)
    try:
        yield
    finally:
        for inner in distributed:
            inner.__dict__.pop("_set_main_param_and_optimizer_states", None)
    # Loading leaves one counter for all, and the fused kernel adds to it once for each parameter.
    for adam in _adams(optimizer):
        for state in adam.state.values():
            state["step"] = state["step"].clone()


def _set_with_step(
    inner: DistributedOptimizer, original: Callable[..., None], model_param: Tensor, tensors: dict[str, Tensor]
) -> None:
    """The distributed optimizer copies every state from ``tensors``, the step too, which the checkpoint keeps apart."""
    group, order = inner.model_param_group_index_map[model_param]
    main_param = inner.optimizer.param_groups[group]["params"][order]
    original(model_param, {**tensors, "step": inner.optimizer.state[main_param]["step"]})


def _adams(optimizer: MegatronOptimizer) -> Iterator[Any]:
    for inner in optimizer.chained_optimizers:
        if isinstance(inner.optimizer, torch.optim.AdamW):
            yield inner.optimizer
