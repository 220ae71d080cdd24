"""Vocabularies that tensor parallelism does not divide.

Embedding and output layer get rows that no token has, up to a multiple of the tensor parallel size. Invariants:

- Padded rows are zero, and stay so: no token looks them up, and their logits are the lowest number there is, so that
  they take no part in the softmax and no gradient comes back. Loss and gradient norm are those of the model without.
- A checkpoint holds them, since Megatron-Core writes what ranks hold; any other padding loads it. They are never
  exported.
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
    parts = parallel.tensor_model_parallel_size
    return -(-model.vocab_size // parts) * parts


def leave_out_padding(chunk: GPTModel, vocab_size: int) -> None:
    """Set this rank's padded rows in ``chunk`` to zero, and keep its padded logits out of the softmax."""
    if chunk.pre_process:
        _zero_padding(chunk.embedding.word_embeddings.weight, vocab_size)
    if chunk.post_process:
        if chunk.output_layer.weight is not None:  # None where it is the embedding's
            _zero_padding(chunk.output_layer.weight, vocab_size)
        chunk.output_layer.register_forward_hook(_Mask(vocab_size))


def num_tokens_here(rows: int, vocab_size: int) -> int:
    """How many of this rank's ``rows`` of embedding or output layer belong to tokens."""
    rank: int = parallel_state.get_tensor_model_parallel_rank()
    return min(max(vocab_size - rank * rows, 0), rows)


def _zero_padding(weight: Tensor, vocab_size: int) -> None:
    with torch.no_grad():
        weight[num_tokens_here(weight.shape[0], vocab_size) :].zero_()


class _Mask:
    """Forward hook of the output layer.

    It takes the lowest finite number, since a rank of nothing but minus infinity has no softmax.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def __call__(self, module: torch.nn.Module, inputs: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        logits_SBV, bias = output
        gathered = getattr(module, "gather_output", False)
        size = logits_SBV.shape[-1]
        valid = min(self._vocab_size, size) if gathered else num_tokens_here(size, self._vocab_size)
        if valid == size:
            return output
        padding_V = torch.arange(size, device=logits_SBV.device) >= valid
        return logits_SBV.masked_fill(padding_V, torch.finfo(logits_SBV.dtype).min), bias
