"""Describes all tensors of a full (unsharded) model in a Megatron-Core checkpoint.

They come from Megatron-Core itself: a model for one process is built on the meta device. In a checkpoint all layers and
experts share one key, and the tensor of layer 3, expert 5 is at index (3, 5) of two leading axes. Keys and full shapes
do not depend on the layout that wrote the checkpoint.
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
from megatron_ssd.models.hf_checkpoint import map_parameters
from megatron_ssd.models.hf_weights import Shape
from megatron_ssd.models.mappings import ParamMapping
from megatron_ssd.runtime import cpu
from megatron_ssd.runtime.process_groups import fake_process_group


@dataclass(frozen=True)
class FullTensor:
    """One parameter of the full model.

    Args:
        name: in ``GPTModel`` of one process.
        key: in a checkpoint.
        index: layer (and expert) along the leading axes of the key; empty for a key of one parameter.
        num_leading: lengths of those axes.
        shape: of this parameter alone.
        padded: whether a checkpoint may have more rows, which pad the vocabulary.
        mapping: its parameter mapping.
        hf_names: the Hugging Face tensors that it is made of.
        hf_shapes: their shapes.
    """

    name: str
    key: str
    index: Shape
    num_leading: Shape
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
    """All tensors in the order of the model's modules, and the keys of the empty objects in a checkpoint.

    The objects are the extra states of linear layers, where TransformerEngine keeps FP8 scales, and of those norms that
    are modules of their own in TransformerEngine's layers. Without FP8 they are empty, but Megatron-Core still loads
    them.
    """

    model: ModelConfig
    tensors: tuple[FullTensor, ...]
    object_keys: tuple[str, ...]

    @property
    def hf_shapes(self) -> dict[str, Shape]:
        """Shape of every Hugging Face tensor by name, in order."""
        return {
            name: shape
            for tensor in self.tensors
            for name, shape in zip(tensor.hf_names, tensor.hf_shapes, strict=True)
        }


def full_model(model: ModelConfig) -> FullModel:
    """The tensors of ``model``. Call it while no process groups exist; it allocates no memory for weights.

    Raises:
        ConfigError: the model cannot be built.
    """
    if not torch.cuda.is_available():
        cpu.install()
    parallel = ParallelConfig()
    # The local layers; TransformerEngine's have the same tensors in a checkpoint.
    precision = PrecisionConfig(transformer_engine=False)
    with fake_process_group(parallel, rank=0):
        (chunk,) = build_model(model, parallel, precision, device="meta", seed=None)
        state = chunk.sharded_state_dict()
        parameters = list(map_parameters(chunk, model))
    apply_factories(state)
    tensors = []
    for mapped in parameters:
        # A gate and up projection is one parameter and, in the checkpoint, two neighbouring shards of one tensor.
        shard = next(value for value in nested_values({"": state[mapped.name]}) if isinstance(value, ShardedTensor))
        num_axes = shard.prepend_axis_num
        shape = tuple(shard.global_shape[num_axes:])
        assert shape == tuple(mapped.parameter.shape), mapped.name
        tensors.append(
            FullTensor(
                name=mapped.name,
                key=shard.key,
                index=tuple(shard.global_offset[:num_axes]),
                num_leading=tuple(shard.global_shape[:num_axes]),
                shape=shape,
                padded=shard.allow_shape_mismatch,
                mapping=mapped.mapping,
                hf_names=mapped.hf_names,
                hf_shapes=mapped.mapping.hf_shapes(shape, model),
            )
        )
    assert sum(tensor.numel for tensor in tensors) == model.num_parameters()
    linears = tuple(value.unique_key for value in nested_values(state) if isinstance(value, ShardedObject))
    norms = tuple(_extra_state(tensor) for tensor in tensors if tensor.key.endswith("norm.weight"))
    return FullModel(model, tuple(tensors), (*linears, *norms))


def _extra_state(norm: FullTensor) -> str:
    """Key of the extra state of a norm. Only TransformerEngine's layers have it."""
    key = norm.key.removesuffix("weight") + "_extra_state"
    unique_key: str = ShardedObject(key, None, norm.num_leading or (1,), norm.index or (0,)).unique_key
    return unique_key
