"""Represents the optimizer's state as named tensors.

Megatron-Core keeps the tensors in a structure that changes with the layout: one optimizer for all parameters, or a
second one for experts under expert parallelism, with parameter groups next to them. A checkpoint of this project holds
the tensors alone. The rest is either configuration, which the loading optimizer has already, or the number of updates,
which is the same for all parameters.

The distributed optimizer names its tensors in one of two formats. ``fully_reshardable`` has a tensor per parameter, by
the parameter's name, which every layout can load; rank 0 of each data-parallel group gathers them in host memory.
``dp_reshardable`` has a tensor per gradient bucket, of which each rank writes its own part without any exchange; only
layouts with the same buckets can load it. The other optimizer has no such choice and is ``fully_reshardable``.

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
from megatron.core.dist_checkpointing.mapping import (
    LocalNonpersistentObject,
    ShardedObject,
    ShardedTensor,
    ShardedTensorFactory,
)
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from megatron_ssd.config.training import OptimizerFormat


def sharding(optimizer_format: OptimizerFormat) -> dict[str, Any]:
    """Megatron-Core's description of ``optimizer_format``."""
    return {
        "distrib_optim_sharding_type": optimizer_format,
        "distrib_optim_fully_reshardable_mem_efficient": True,  # otherwise every rank gathers, not only rank 0
        "chained_optim_avoid_prefix": True,
    }


class OptimizerState:
    """The state of ``optimizer`` on this rank, to be saved or to be filled.

    Args:
        models: the sharded state of the model, which gives names and offsets of the tensors.
        optimizer_format: the format that is written, or that was written.
        loading: whether it will be filled.
    """

    def __init__(
        self,
        optimizer: MegatronOptimizer,
        models: dict[str, Any],
        optimizer_format: OptimizerFormat,
        *,
        loading: bool,
    ) -> None:
        self._optimizer = optimizer
        self._state_dict = optimizer.sharded_state_dict(models, is_loading=loading, metadata=sharding(optimizer_format))
        _clear_padding(self._state_dict)
        self.tensors: dict[str, Any] = {}
        _map_leaves(self._state_dict, self._collect)

    def _collect(self, path: str, leaf: Any) -> Any:
        if isinstance(leaf, ShardedTensor | ShardedTensorFactory):
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
            if isinstance(leaf, ShardedObject):  # groups and sizes, which this optimizer has already
                return leaf.data
            return leaf.unwrap() if isinstance(leaf, LocalNonpersistentObject) else leaf

        state_dict = _map_leaves(self._state_dict, filled)
        optimizers = self._optimizer.chained_optimizers
        for number, inner in enumerate(optimizers):
            set_updates(state_dict if len(optimizers) == 1 else state_dict[number], inner.optimizer, updates)
        with _loadable(self._optimizer), torch.no_grad():
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
        original = inner._set_main_param_and_optimizer_states
        inner._set_main_param_and_optimizer_states = functools.partial(_set_states, inner, original)
    try:
        yield
    finally:
        for inner in distributed:
            inner.__dict__.pop("_set_main_param_and_optimizer_states", None)
    # Loading leaves one counter for all parameters, and the fused kernel adds to it once per parameter.
    for adam in pytorch_adams(optimizer):
        for state in adam.state.values():
            state["step"] = state["step"].clone()


def _set_states(
    inner: DistributedOptimizer, original: Callable[..., None], model_param: Tensor, tensors: dict[str, Any]
) -> None:
    """Copy the states of one parameter, with the step, which the checkpoint keeps apart, for PyTorch's AdamW.

    Megatron-Core's ``dp_reshardable`` leaves a mark for padding among the states, which the precision-aware optimizer
    would take for a state.
    """
    states = {name: value for name, value in tensors.items() if name != "padding"}
    if isinstance(inner.optimizer, torch.optim.AdamW):
        group, order = inner.model_param_group_index_map[model_param]
        main_param = inner.optimizer.param_groups[group]["params"][order]
        states["step"] = inner.optimizer.state[main_param]["step"]
    original(model_param, states)


def _clear_padding(value: Any) -> None:
    """Zero the padding between parameters, which is uninitialised, so that files depend on the state alone."""
    if isinstance(value, dict):
        mark = value.get("padding")
        if isinstance(mark, LocalNonpersistentObject) and mark.unwrap():
            for each in value.values():
                if isinstance(each, ShardedTensor):
                    each.data.zero_()
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _clear_padding(each)


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
