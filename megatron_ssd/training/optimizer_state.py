"""Represents the optimizer's state as named tensors, independent of the parallel layout.

Megatron-Core keys every tensor of the state by its parameter's name, but keeps the tensors in a structure that changes
with the layout: one optimizer for all parameters, or a second one for experts under expert parallelism, with parameter
groups next to them. A checkpoint of this project holds the tensors alone. The rest is either configuration, which the
loading optimizer has already, or the number of updates, which is the same for all parameters.

Megatron-Core 0.16 expects TransformerEngine's or apex's Adam, which count steps per group. PyTorch's AdamW, which it
uses if neither is installed, counts per parameter. Saving and loading its state needs three adaptations, which this
module makes; it changes nothing for other optimizers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject, ShardedBase
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

# The only form of the distributed optimizer's state that every other layout can load.
SHARDING = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}


class OptimizerState:
    """The state of ``optimizer`` on this rank, to be saved or to be filled.

    Args:
        models: the sharded state of the model, which gives names and offsets of the tensors.
        loading: whether it will be filled.
    """

    def __init__(self, optimizer: MegatronOptimizer, models: dict[str, Any], *, loading: bool) -> None:
        self._optimizer = optimizer
        self._state_dict = optimizer.sharded_state_dict(models, is_loading=loading, metadata=SHARDING)
        self.tensors: dict[str, Any] = {}
        _map_leaves(self._state_dict, self._collect)

    def _collect(self, path: str, leaf: Any) -> Any:
        if isinstance(leaf, ShardedBase) and not isinstance(leaf, LocalNonpersistentObject):
            self.tensors[path] = leaf
        return leaf

    def load(self, tensors: dict[str, Any], *, updates: int) -> None:
        """Load ``tensors``, read by the names of ``self.tensors``, into the optimizer.

        Args:
            updates: number of updates that the optimizer has made.
        """

        def filled(path: str, leaf: Any) -> Any:
            if path in tensors:
                return tensors[path]
            return leaf.unwrap() if isinstance(leaf, LocalNonpersistentObject) else leaf

        state_dict = _map_leaves(self._state_dict, filled)
        optimizers = self._optimizer.chained_optimizers
        for number, inner in enumerate(optimizers):
            set_updates(state_dict if len(optimizers) == 1 else state_dict[number], inner.optimizer, updates)
        with _loadable(self._optimizer):
            self._optimizer.load_state_dict(state_dict)


def allocate_state(optimizer: MegatronOptimizer) -> None:
    """Give each parameter of PyTorch's AdamW an empty state: saving and loading read it before the first update."""
    for adam in pytorch_adams(optimizer):
        for group in adam.param_groups:
            for parameter in group["params"]:
                adam.state[parameter] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


@contextmanager
def _loadable(optimizer: MegatronOptimizer) -> Iterator[None]:
    """While entered, ``optimizer.load_state_dict`` works; after it, each parameter has its own step counter."""
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
    # Loading leaves one counter for all parameters, and the fused kernel adds to it once per parameter.
    for adam in pytorch_adams(optimizer):
        for state in adam.state.values():
            state["step"] = state["step"].clone()


def _set_with_step(
    inner: DistributedOptimizer, original: Callable[..., None], model_param: Tensor, tensors: dict[str, Tensor]
) -> None:
    """Add the step, which the checkpoint keeps apart, to the states that the distributed optimizer copies."""
    group, order = inner.model_param_group_index_map[model_param]
    main_param = inner.optimizer.param_groups[group]["params"][order]
    original(model_param, {**tensors, "step": inner.optimizer.state[main_param]["step"]})


def pytorch_adams(optimizer: MegatronOptimizer) -> Iterator[torch.optim.AdamW]:
    """The AdamW optimizers of PyTorch that Megatron-Core uses if it finds no other Adam."""
    for inner in optimizer.chained_optimizers:
        if isinstance(inner.optimizer, torch.optim.AdamW):
            yield inner.optimizer


def set_updates(state: dict[str, Any], adam: torch.optim.Optimizer, updates: int) -> None:
    """Write the number of updates where ``adam`` reads it: in the groups, and for PyTorch's AdamW next to the state.

    TransformerEngine's FusedAdam takes every entry next to the state for a tensor of a parameter.
    """
    state = state.get("optimizer", state)
    for group in state["param_groups"]:
        group["step"] = updates
    if "state" in state and isinstance(adam, torch.optim.AdamW):
        state["state"]["common_step"] = torch.tensor(float(updates))


def _map_leaves(value: Any, change: Callable[[str, Any], Any], path: str = "") -> Any:
    """A copy of nested dictionaries and lists with ``change(path, leaf)`` in place of every leaf."""
    if isinstance(value, dict):
        return {key: _map_leaves(each, change, f"{path}/{key}") for key, each in value.items()}
    if isinstance(value, list):
        return [_map_leaves(each, change, f"{path}/{number}") for number, each in enumerate(value)]
    return change(path, value)
