"""A logits processor of vLLM that applies top-k together with top-p without sorting the vocabulary.

With top-p, vLLM on a CPU sorts the logits of the vocabulary for every token that it draws, which takes longer than the
forward pass of a small model. The processor gives the same masked logits. It sorts only a window: the k largest logits
and a few more.

vLLM sorts each row in ascending order, masks the logits below the k-th largest, masks again while the cumulative sum of
the probabilities is at most 1 - p, and keeps the last one. The window is the end of that sorted row, and all before it
is below the k-th largest:

- Equal logits are in the order of their ids, as torch sorts them on a CPU, so p cuts a group of them at the same id.
- The sums are the same to the last bit. Masked logits have probability 0, which adds nothing. torch adds a row in as
  many partial sums as a vector register has numbers; the window keeps each logit in its partial sum, because its length
  differs from the vocabulary's by a multiple of ``_LANES``.
- If logits that equal the k-th largest may be outside the window, vLLM's own function masks that row. It also masks
  rows without top-k.

A processor runs before vLLM's own top-k and top-p, which must be off. A request states its settings in
``SamplingParams(extra_args={"top_k": ..., "top_p": ...})``.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

_SPARE = 32  # logits of the window beyond the k-th, for those that equal it
_LANES = 64  # a multiple of the numbers in a vector register, with room for wider ones


class TopKTopP(LogitsProcessor):
    """Masks the logits of each request by the settings in its ``extra_args``."""

    started = 0  # processors in this process

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        TopKTopP.started += 1
        self._vocab_size = vllm_config.model_config.get_vocab_size()
        self._settings: dict[int, tuple[int, float]] = {}  # (top-k, top-p) by the request's index in the batch
        self._k_B: torch.Tensor | None = None
        self._p_B: torch.Tensor | None = None

    def is_argmax_invariant(self) -> bool:
        """The most likely token survives."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Note which requests are in the batch. As in vLLM, a limit that no request has is None."""
        if batch_update is None:
            return
        process_dict_updates(self._settings, batch_update, self._setting)
        off = self._vocab_size, 1.0
        settings = [self._settings.get(index, off) for index in range(batch_update.batch_size)]
        ks, ps = [k for k, _ in settings], [p for _, p in settings]
        self._k_B = torch.tensor(ks) if any(k < self._vocab_size for k in ks) else None
        self._p_B = torch.tensor(ps) if any(p < 1 for p in ps) else None

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask ``logits`` [requests, vocabulary] in place."""
        return truncate(logits, self._k_B, self._p_B)

    def _setting(self, params: SamplingParams, _prompt: object, _output: object) -> tuple[int, float] | None:
        extra = params.extra_args or {}
        if "top_k" not in extra:
            return None
        k = extra["top_k"]
        return k if 0 < k < self._vocab_size else self._vocab_size, extra["top_p"]


def truncate(logits_BV: torch.Tensor, k_B: torch.Tensor | None, p_B: torch.Tensor | None) -> torch.Tensor:
    """Mask every logit that top-k, and then top-p, drops.

    Args:
        logits_BV: float32; changed in place.
        k_B: logits to keep, from 1 to V; V means all. None if every row keeps all.
        p_B: float32; probability to keep. None if every row keeps all.

    Returns:
        ``logits_BV``, with minus infinity for what is masked: equal to what vLLM's ``apply_top_k_top_p`` returns.
    """
    vocab_size = logits_BV.shape[1]
    if k_B is None or p_B is None:
        return apply_top_k_top_p(logits_BV, k_B, p_B)
    length = int(k_B.masked_fill(k_B == vocab_size, 0).max()) + _SPARE
    length += (vocab_size - length) % _LANES
    if length >= vocab_size:
        return apply_top_k_top_p(logits_BV, k_B, p_B)
    window_BW, ids_BW = logits_BV.topk(length, dim=1, sorted=False)
    ids_BW, order_BW = ids_BW.sort(dim=1)
    window_BW, order_BW = window_BW.gather(1, order_BW).sort(dim=1, stable=True)
    ids_BW = ids_BW.gather(1, order_BW)
    kth_B1 = window_BW.gather(1, (length - k_B.long()).clamp(min=0).unsqueeze(1))
    lowest_B1 = window_BW[:, :1].clone()
    # False for NaN, and if the row has no top-k: its k-th is the lowest. Minus infinity stays masked wherever it is.
    is_exact_B = ((lowest_B1 < kth_B1) | (lowest_B1 == -torch.inf)).squeeze(1) & (k_B < vocab_size)
    window_BW.masked_fill_(window_BW < kth_B1, -torch.inf)
    is_dropped_BW = window_BW.softmax(dim=1).cumsum(dim=1) <= 1 - p_B.unsqueeze(1)
    is_dropped_BW[:, -1] = False
    window_BW.masked_fill_(is_dropped_BW, -torch.inf)
    others_R = (~is_exact_B).nonzero().squeeze(1)
    others_RV = logits_BV[others_R]
    logits_BV.fill_(-torch.inf).scatter_(1, ids_BW, window_BW)
    if len(others_R):
        logits_BV[others_R] = apply_top_k_top_p(others_RV, k_B[others_R], p_B[others_R])
    return logits_BV
