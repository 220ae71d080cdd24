"""A Megatron-Core checkpoint seen under Hugging Face names, one tensor at a time.

What belongs together in Megatron-Core (query, key and value; gate and up) is read once for its parts, which follow one
another; so one weight of the checkpoint, and one tensor cut from it, are in memory at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_ssd.config.export import Weights
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.errors import UserError
from megatron_ssd.export.checkpoint_reader import CheckpointReader
from megatron_ssd.export.full_model import FullModel, FullTensor, full_model
from megatron_ssd.export.shards import Shard, TensorSpec, is_written, plan_shards, write_index, write_shard
from megatron_ssd.models.hf_folder import HFWeights
from megatron_ssd.progress import progress

log = logging.getLogger(__name__)


class StateDictAdapter:
    """Hugging Face tensors made on request from ``reader``.

    Args:
        reader: an opened checkpoint, already checked against ``whole``.
        whole: names, keys and shapes.
        dtype_of: the type in which a weight of the checkpoint is written.
        dtypes: types of single Hugging Face tensors where they differ from that.
    """

    def __init__(
        self,
        reader: CheckpointReader,
        whole: FullModel,
        dtype_of: Callable[[FullTensor], torch.dtype],
        dtypes: Mapping[str, torch.dtype] | None = None,
    ) -> None:
        self._reader = reader
        self._whole = whole
        self._dtype_of = dtype_of
        self._dtypes = dtypes or {}
        self._weight_of = {name: weight for weight in whole.weights for name in weight.hf_names}
        self._last: tuple[FullTensor, dict[str, Tensor]] | None = None

    @property
    def model(self) -> ModelConfig:
        """Shape of the model."""
        return self._whole.model

    @property
    def specs(self) -> list[TensorSpec]:
        """Name, shape and type of every tensor, in the order of the model's modules."""
        return [
            TensorSpec(name, shape, self._dtypes.get(name, self._dtype_of(weight)))
            for weight in self._whole.weights
            for name, shape in zip(weight.hf_names, weight.hf_shapes, strict=True)
        ]

    def value(self, name: str) -> Tensor:
        """The tensor of a Hugging Face name."""
        weight = self._weight_of[name]
        if self._last is None or self._last[0] is not weight:
            self._last = None  # let go of it before the next one comes
            self._last = (weight, self._parts(weight))
        return self._last[1][name]

    def fill(self, chunk: GPTModel) -> None:
        """Copy every weight, as it is written, into a whole model of one process."""
        parameters = dict(chunk.named_parameters())
        with torch.no_grad():
            for weight in self._whole.weights:
                parameters[weight.name].copy_(self._reader.read(weight, self._dtype_of(weight)))

    def write(self, folder: Path, *, max_shard_bytes: int) -> list[Shard]:
        """Write all tensors and their index into ``folder``. Files that are already whole are left as they are."""
        shards = plan_shards(self.specs, max_bytes=max_shard_bytes)
        for shard in shards:
            if is_written(folder, shard):
                log.info("%s is already whole", shard.file_name)
            else:
                write_shard(folder, shard, self.value)
        write_index(folder, shards)
        return shards

    def check_folder(self, folder: Path) -> None:
        """Read ``folder`` back and compare every value, bit by bit.

        Raises:
            UserError: a weight is missing, or its file does not hold what the checkpoint holds.
        """
        weights = HFWeights(folder)
        for spec in progress(self.specs, desc=f"comparing {folder.name}", unit="weight"):
            if spec.name not in weights.names or not _is_equal(spec, weights, self.value(spec.name)):
                raise UserError(
                    f"folder {folder}",
                    rule=f"what it holds of {spec.name} is not what was written",
                    fix="remove the folder, check the disk, and run the export again",
                )

    def _parts(self, weight: FullTensor) -> dict[str, Tensor]:
        types = [self._dtypes.get(name, self._dtype_of(weight)) for name in weight.hf_names]
        # Parts of several types stand in the checkpoint in one that holds them all exactly.
        merged = types[0] if len(set(types)) == 1 else torch.float32
        parts = weight.mapping.split(self._reader.read(weight, merged), self._whole.model)
        return {name: part.to(dtype) for name, part, dtype in zip(weight.hf_names, parts, types, strict=True)}


def open_adapter(
    checkpoint: Path,
    model: ModelConfig,
    *,
    weights: Weights,
    dtype: torch.dtype | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> StateDictAdapter:
    """``checkpoint``'s weights, or their moving average, after names and shapes were compared with ``model``.

    Args:
        checkpoint: folder ``iter_...``.
        model: its shape.
        weights: which of the two.
        dtype: type that is written; None for the one that the checkpoint holds the weights (not their mean) in.
        dtypes: types of single Hugging Face tensors.

    Raises:
        UserError: the checkpoint cannot be read, holds no moving average, or is of another model.
    """
    whole = full_model(model)
    trained = CheckpointReader(checkpoint)
    trained.check(whole)
    reader = trained
    if weights == "ema":
        reader = CheckpointReader(checkpoint, weights="ema")
        reader.check(whole)
    return StateDictAdapter(reader, whole, dtype_of=lambda weight: dtype or trained.dtype(weight), dtypes=dtypes)


def _is_equal(spec: TensorSpec, weights: HFWeights, value: Tensor) -> bool:
    if (weights.shape(spec.name), weights.dtype(spec.name)) != (spec.shape, spec.dtype):
        return False
    found = weights.read(spec.name).flatten().view(torch.uint8)
    return torch.equal(found, value.contiguous().flatten().view(torch.uint8))  # bits: NaN is equal to itself
