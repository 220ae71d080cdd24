"""The optimizer's state as named tensors, free of how a layout arranges it.

Megatron-Core keys every tensor of the state by its parameter's name, but keeps them in a structure that changes with
the layout: one optimizer for all parameters, or a second one for experts under expert parallelism, with groups beside
them. Here a checkpoint holds the tensors alone. The rest is either configuration, which the optimizer that loads has
already, or the number of updates, which is one for all parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject, ShardedBase
from megatron.core.optimizer import MegatronOptimizer

from megatron_ssd.training import adam_state

# The one form of the distributed optimizer's state that any other layout can load.
METADATA = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}


class OptimizerState:
    """The state of ``optimizer`` on this rank, to be saved or to be filled.

    Args:
        models: the sharded state of the model, from which tensors have their names and places.
        loading: whether it will be filled.
    """

    def __init__(self, optimizer: MegatronOptimizer, models: dict[str, Any], *, loading: bool) -> None:
        self._optimizer = optimizer
        self._whole = optimizer.sharded_state_dict(models, is_loading=loading, metadata=METADATA)
        self.tensors: dict[str, Any] = {}
        _map_leaves(self._whole, self._collect)

    def _collect(self, path: str, leaf: Any) -> Any:
        if isinstance(leaf, ShardedBase) and not isinstance(leaf, LocalNonpersistentObject):
            self.tensors[path] = leaf
        return leaf

    def load(self, tensors: dict[str, Any], *, updates: int) -> None:
        """Hand ``tensors``, read by the names of ``self.tensors``, to the optimizer.

        Args:
            updates: that the optimizer has made.
        """

        def filled(path: str, leaf: Any) -> Any:
            if path in tensors:
                return tensors[path]
            return leaf.unwrap() if isinstance(leaf, LocalNonpersistentObject) else leaf

        whole = _map_leaves(self._whole, filled)
        inner = self._optimizer.chained_optimizers
        for number in range(len(inner)):
            _set_updates(whole if len(inner) == 1 else whole[number], updates)
        with adam_state.loadable(self._optimizer):
            self._optimizer.load_state_dict(whole)


def _set_updates(state: dict[str, Any], updates: int) -> None:
    """Write the number of updates where Megatron-Core's optimizers look for it: in the groups, or beside the state."""
    state = state.get("optimizer", state)
    for group in state["param_groups"]:
        group["step"] = updates
    if "state" in state:
        state["state"]["common_step"] = torch.tensor(float(updates))


def _map_leaves(value: Any, change: Callable[[str, Any], Any], path: str = "") -> Any:
    """A copy of nested dictionaries and lists with every leaf changed; ``change`` is told where it is."""
    if isinstance(value, dict):
        return {key: _map_leaves(each, change, f"{path}/{key}") for key, each in value.items()}
    if isinstance(value, list):
        return [_map_leaves(each, change, f"{path}/{number}") for number, each in enumerate(value)]
    return change(path, value)
