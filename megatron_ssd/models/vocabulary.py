"""Pads vocabularies that the tensor parallel size does not divide.

The embedding and the output layer get extra rows, up to a multiple of the tensor parallel size. Invariants:

- Padded rows are zero and stay zero: no token looks them up, and their logits are the lowest finite number, so that
  they do not affect the softmax and get no gradient. Loss and gradient norm equal those without padding.
- A checkpoint contains them, because Megatron-Core writes what ranks hold; it loads with any other padding. They are
  never exported.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.parallel import ParallelConfig


def padded_vocab_size(model: ModelConfig, parallel: ParallelConfig) -> int:
    """Rows of the embedding over all ranks: the vocabulary, up to the next multiple of the tensor parallel size."""
    tp_size = parallel.tensor_model_parallel_size
    return -(-model.vocab_size // tp_size) * tp_size


def mask_vocab_padding(chunk: GPTModel, vocab_size: int) -> None:
    """Set this rank's padded rows in ``chunk`` to zero, and mask its padded logits."""
    if chunk.pre_process:
        _zero_padding(chunk.embedding.word_embeddings.weight, vocab_size)
    if chunk.post_process:
        if chunk.output_layer.weight is not None:  # None if it is the embedding's
            _zero_padding(chunk.output_layer.weight, vocab_size)
        chunk.output_layer.register_forward_hook(_LogitMask(vocab_size))


def num_local_tokens(num_rows: int, vocab_size: int) -> int:
    """How many of this rank's ``num_rows`` rows of embedding or output layer belong to tokens."""
    rank: int = parallel_state.get_tensor_model_parallel_rank()
    return min(max(vocab_size - rank * num_rows, 0), num_rows)


def _zero_padding(weight: Tensor, vocab_size: int) -> None:
    with torch.no_grad():
        weight[num_local_tokens(weight.shape[0], vocab_size) :].zero_()


class _LogitMask:
    """Forward hook of the output layer that masks padded logits.

    It uses the lowest finite number: a rank whose logits are all minus infinity has no softmax.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def __call__(self, module: torch.nn.Module, inputs: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        logits_SBV, bias = output
        gathered = getattr(module, "gather_output", False)
        size = logits_SBV.shape[-1]
        valid = min(self._vocab_size, size) if gathered else num_local_tokens(size, self._vocab_size)
        if valid == size:
            return output
        padding_V = torch.arange(size, device=logits_SBV.device) >= valid
        return logits_SBV.masked_fill(padding_V, torch.finfo(logits_SBV.dtype).min), bias
