"""Every weight of a whole model, as a Megatron-Core checkpoint names and shapes it, without the model.

Megatron-Core's own word, taken from a model of one process on the meta device: a weight of layer 3, expert 5 stands in
the checkpoint under one key for all layers and experts, at (3, 5) along two leading axes. Layouts do not show: however
many ranks wrote a checkpoint, the keys and whole shapes are these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, apply_factories

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.models.build import build_model
from megatron_ssd.models.families.mappings import ParamMapping
from megatron_ssd.models.hf_checkpoint import map_parameters
from megatron_ssd.models.hf_folder import Shape
from megatron_ssd.runtime import cpu
from megatron_ssd.runtime.process_groups import fake_process_group


@dataclass(frozen=True)
class FullTensor:
    """One parameter of the whole model.

    Args:
        name: in ``GPTModel`` of one process.
        key: in a checkpoint, where ``place`` says which layer (and expert) of the ``places`` that share the key.
        place: position along the key's leading axes; empty for a key of one weight.
        places: lengths of those axes.
        shape: of this parameter alone.
        padded: whether a checkpoint may hold more rows, which pad the vocabulary.
        mapping: its parameter mapping.
        hf_names: the Hugging Face weights that it is made of.
        hf_shapes: their shapes.
    """

    name: str
    key: str
    place: Shape
    places: Shape
    shape: Shape
    padded: bool
    mapping: ParamMapping
    hf_names: tuple[str, ...]
    hf_shapes: tuple[Shape, ...]

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class FullModel:
    """All weights in the order of the model's modules, and the keys of empty objects that a checkpoint has beside them.

    The objects are the extra states of linear layers, where TransformerEngine keeps FP8 scales; without FP8 they are
    empty, but Megatron-Core asks for them.
    """

    model: ModelConfig
    weights: tuple[FullTensor, ...]
    object_keys: tuple[str, ...]


def full_model(model: ModelConfig) -> FullModel:
    """Lay out ``model`` for one process. Must be called while no process groups exist; needs no memory for weights.

    Raises:
        ConfigError: the model cannot be built.
    """
    if not torch.cuda.is_available():
        cpu.install()
    parallel = ParallelConfig()
    # The layers of Megatron-Core; TransformerEngine's have the same keys in a checkpoint.
    precision = PrecisionConfig(transformer_engine=False)
    with fake_process_group(parallel, rank=0):
        (chunk,) = build_model(model, parallel, precision, device="meta", seed=None)
        state = chunk.sharded_state_dict()
        mapped = list(map_parameters(chunk, model))
    apply_factories(state)
    weights = []
    for row in mapped:
        # A gate and up projection is one parameter and, in the checkpoint, two neighbouring shards of one tensor.
        shard = next(value for value in nested_values({"": state[row.name]}) if isinstance(value, ShardedTensor))
        leading = shard.prepend_axis_num
        shape = tuple(shard.global_shape[leading:])
        assert shape == tuple(row.parameter.shape), row.name
        weights.append(
            FullTensor(
                name=row.name,
                key=shard.key,
                place=tuple(shard.global_offset[:leading]),
                places=tuple(shard.global_shape[:leading]),
                shape=shape,
                padded=shard.allow_shape_mismatch,
                mapping=row.mapping,
                hf_names=row.hf_names,
                hf_shapes=row.mapping.hf_shapes(shape, model),
            )
        )
    assert sum(weight.numel for weight in weights) == model.num_parameters()
    objects = tuple(value.unique_key for value in nested_values(state) if isinstance(value, ShardedObject))
    return FullModel(model, tuple(weights), objects)
