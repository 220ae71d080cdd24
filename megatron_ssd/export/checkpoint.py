"""Weights of a distributed checkpoint into a model of one process.

Whatever layout wrote it: each tensor in the checkpoint knows its place in the whole parameter, and Megatron-Core puts
them together while loading. Optimizer state is not read. Names and shapes are compared before anything is loaded.
"""

from __future__ import annotations

from pathlib import Path

from megatron.core import dist_checkpointing
from megatron.core.models.gpt import GPTModel

from megatron_ssd.errors import UserError
from megatron_ssd.models.initialization import local_shards


def load_weights(path: Path, chunk: GPTModel) -> None:
    """Fill ``chunk``, which holds the whole model, from the checkpoint folder ``path``.

    Raises:
        UserError: the checkpoint lacks a weight of the model, or has it in another shape.
    """
    shapes = {key: tuple(stored.global_shape) for key, stored in dist_checkpointing.load_tensors_metadata(path).items()}
    for shard in local_shards(chunk):
        found = shapes.get(shard.key)
        if found != tuple(shard.global_shape):
            raise UserError(
                f"checkpoint {path}",
                rule=f"{shard.key} {f'has shape {list(found)}' if found else 'is missing'} and the model wants shape "
                f"{list(shard.global_shape)}",
                fix="choose the model group that the checkpoint was trained with",
            )
    # Under a key of its own: what the checkpoint holds beside tensors comes along at the top.
    loaded = dist_checkpointing.load({"weights": chunk.sharded_state_dict()}, str(path))
    chunk.load_state_dict(loaded["weights"])
