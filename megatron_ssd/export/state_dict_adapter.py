"""Reads a Megatron-Core checkpoint as a Hugging Face state dict, one tensor at a time.

Tensors that are one parameter in Megatron-Core (query, key and value; gate and up) follow one another, and the
parameter is read once for all of them. So one parameter and one tensor split from it are in memory at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.training import Weights
from megatron_ssd.errors import UserError
from megatron_ssd.export.checkpoint_reader import CheckpointReader
from megatron_ssd.export.full_model import FullModel, FullTensor, full_model
from megatron_ssd.export.shards import Shard, TensorSpec, is_written, plan_shards, write_index, write_shard
from megatron_ssd.models.hf_weights import HFWeights
from megatron_ssd.models.mappings import EMBEDDING, HEAD
from megatron_ssd.progress import progress

log = logging.getLogger(__name__)


class StateDictAdapter:
    """Hugging Face tensors, made on request from a checkpoint.

    Args:
        reader: an opened checkpoint of the model ``full``.
        full: names, keys and shapes.
        dtype_of: the type in which a parameter is written.
        dtypes: types of single Hugging Face tensors that differ from it. If it has the output layer of a model with
            tied embeddings, a copy of them is written.
        buffers: tensors that are not in a checkpoint.
    """

    def __init__(
        self,
        reader: CheckpointReader,
        full: FullModel,
        dtype_of: Callable[[FullTensor], torch.dtype],
        dtypes: Mapping[str, torch.dtype] | None = None,
        buffers: HFWeights | None = None,
    ) -> None:
        self.model: ModelConfig = full.model
        self._reader = reader
        self._full = full
        self._dtype_of = dtype_of
        self._dtypes = dtypes or {}
        self._source_of = {name: tensor for tensor in full.tensors for name in tensor.hf_names}
        self._buffers = buffers
        self._last: tuple[FullTensor, dict[str, Tensor]] | None = None

    @property
    def specs(self) -> list[TensorSpec]:
        """Name, shape and type of every tensor, in the order of the model's modules."""
        specs = [
            TensorSpec(name, shape, self._dtypes.get(name, self._dtype_of(self._source_of[name])))
            for name, shape in self._full.hf_shapes.items()
        ]
        if self._copies_head:
            specs.append(TensorSpec(HEAD, self._full.hf_shapes[EMBEDDING], self._dtypes[HEAD]))
        if (found := self._buffers) is not None:
            specs += [TensorSpec(name, found.shape(name), found.dtype(name)) for name in sorted(found.names)]
        return specs

    @property
    def _copies_head(self) -> bool:
        return HEAD in self._dtypes and HEAD not in self._source_of

    def value(self, name: str) -> Tensor:
        """The tensor of a Hugging Face name."""
        if self._copies_head and name == HEAD:
            return self.value(EMBEDDING).to(self._dtypes[HEAD])
        if self._buffers is not None and name in self._buffers.names:
            return self._buffers.read(name)
        source = self._source_of[name]
        if self._last is None or self._last[0] is not source:
            self._last = None  # free it before the next one is read
            self._last = (source, self._read_parts(source))
        return self._last[1][name]

    def load_into(self, chunk: GPTModel) -> None:
        """Copy every parameter, in the type in which it is written, into a full model of one process."""
        parameters = dict(chunk.named_parameters())
        with torch.no_grad():
            for tensor in self._full.tensors:
                parameters[tensor.name].copy_(self._reader.read(tensor, self._dtype_of(tensor)))

    def write(self, folder: Path, *, max_shard_bytes: int) -> list[Shard]:
        """Write all tensors and their index to ``folder``. Files that are already complete are kept."""
        shards = plan_shards(self.specs, max_bytes=max_shard_bytes)
        for shard in shards:
            if is_written(folder, shard):
                log.info("%s is already complete", shard.file_name)
            else:
                write_shard(folder, shard, self.value)
        write_index(folder, shards)
        return shards

    def check_folder(self, folder: Path) -> None:
        """Read ``folder`` back and compare every value, bit by bit.

        Raises:
            UserError: a weight is missing, or its file differs from the checkpoint.
        """
        weights = HFWeights(folder)
        for spec in progress(self.specs, desc=f"comparing {folder.name}", unit="weight"):
            if spec.name not in weights.names or not _is_equal(spec, weights, self.value(spec.name)):
                raise UserError(
                    f"folder {folder}",
                    rule=f"its {spec.name} differs from what was written",
                    fix="remove the folder, check the disk, and run the export again",
                )

    def _read_parts(self, source: FullTensor) -> dict[str, Tensor]:
        dtypes = [self._dtypes.get(name, self._dtype_of(source)) for name in source.hf_names]
        # Parts of several types are stored in the checkpoint in a type that represents all of them exactly.
        merged = dtypes[0] if len(set(dtypes)) == 1 else torch.float32
        parts = source.mapping.split(self._reader.read(source, merged), self.model)
        return {name: part.to(dtype) for name, part, dtype in zip(source.hf_names, parts, dtypes, strict=True)}


def open_adapter(
    checkpoint: Path,
    model: ModelConfig,
    *,
    weights: Weights,
    dtype: torch.dtype | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
    buffers: HFWeights | None = None,
) -> StateDictAdapter:
    """Open ``checkpoint`` and compare names and shapes with ``model``.

    Args:
        checkpoint: folder ``iter_...``.
        model: its shape.
        weights: the weights or their moving average.
        dtype: type to write; None for the type of the weights (not of their average) in the checkpoint.
        dtypes: types of single Hugging Face tensors, see ``StateDictAdapter``.
        buffers: tensors that are not in a checkpoint.

    Raises:
        UserError: the checkpoint cannot be read, has no moving average, or is of another model.
    """
    full = full_model(model)
    trained = CheckpointReader(checkpoint, full)
    reader = CheckpointReader(checkpoint, full, weights="ema") if weights == "ema" else trained
    return StateDictAdapter(
        reader, full, dtype_of=lambda tensor: dtype or trained.dtype(tensor), dtypes=dtypes, buffers=buffers
    )


def _is_equal(spec: TensorSpec, weights: HFWeights, value: Tensor) -> bool:
    if (weights.shape(spec.name), weights.dtype(spec.name)) != (spec.shape, spec.dtype):
        return False
    found = weights.read(spec.name).flatten().view(torch.uint8)
    return torch.equal(found, value.contiguous().flatten().view(torch.uint8))  # bits, so that NaN equals itself
