"""A whole Megatron-Core model seen under Hugging Face names, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.errors import UserError
from megatron_ssd.export.shards import TensorSpec
from megatron_ssd.models.hf_checkpoint import MappedParameter, map_parameters
from megatron_ssd.models.hf_folder import HFWeights


class ModelWeights:
    """Hugging Face tensors made on request from the parameters of ``chunk``, which holds the whole model.

    Args:
        chunk: the model of one process.
        model: its shape.
    """

    def __init__(self, chunk: GPTModel, model: ModelConfig) -> None:
        self._model = model
        self._rows = list(map_parameters(chunk, model))
        self._row_of = {name: row for row in self._rows for name in row.hf_names}
        assert sum(row.parameter.numel() for row in self._rows) == model.num_parameters()

    @property
    def specs(self) -> list[TensorSpec]:
        """Name, shape and type of every tensor, in the order of the model's modules."""
        return list(self._specs())

    def value(self, name: str) -> Tensor:
        """The tensor of a Hugging Face name."""
        row = self._row_of[name]
        with torch.no_grad():
            return row.rule.divide(row.parameter, self._model)[row.hf_names.index(name)]

    def check_folder(self, folder: Path) -> None:
        """Read ``folder`` back and compare every value, bit by bit.

        Raises:
            UserError: a weight is missing, or its file does not hold what the model holds.
        """
        weights = HFWeights(folder)
        for row in self._rows:
            if not set(row.hf_names) <= weights.names or not self._is_equal(row, weights):
                raise UserError(
                    f"folder {folder}",
                    rule=f"what it holds of {', '.join(row.hf_names)} is not what was written",
                    fix="remove the folder, check the disk, and run the export again",
                )

    def _is_equal(self, row: MappedParameter, weights: HFWeights) -> bool:
        merged = row.rule.merge([weights.read(name) for name in row.hf_names], self._model)
        return merged.dtype == row.parameter.dtype and torch.equal(merged, row.parameter.detach().cpu())

    def _specs(self) -> Iterator[TensorSpec]:
        for row in self._rows:
            shapes = row.rule.hf_shapes(tuple(row.parameter.shape), self._model)
            for name, shape in zip(row.hf_names, shapes, strict=True):
                yield TensorSpec(name, shape, row.parameter.dtype)
