"""A logits processor of vLLM that applies top-k together with top-p without sorting the vocabulary.

With top-p, vLLM on a CPU sorts the logits of the vocabulary for every token that it draws, which takes longer than the
forward pass of a small model. The processor gives the same masked logits, bit by bit, from a window of each row: the k
largest logits and a few more.

vLLM sorts a row in ascending order, masks the logits below the k-th largest, masks again while the cumulative sum of
the probabilities is at most 1 - p, and keeps the last one. The window is the end of the sorted row:

- What is before the window is below the k-th largest. If logits that equal the k-th largest may be there, vLLM's own
  function masks that row. It also masks rows without top-k.
- The sums are the same. Masked logits have probability 0, which adds nothing. torch adds a row in as many partial sums
  as a vector register has numbers. The window's length differs from the vocabulary's by a multiple of ``_LANES``, so
  that each logit stays in its partial sum.
- If p drops some of several equal logits, the order of torch's sort decides which: see ``_largest_ids``. This is common
  with models in bfloat16, which have few different logits.

A processor runs before vLLM's own top-k and top-p, which must be off. A request states its settings in
``SamplingParams(extra_args={"top_k": ..., "top_p": ...})``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

_SPARE = 32  # logits of the window beyond the k-th, for those that equal it
_LANES = 64  # a multiple of the numbers in a vector register, with room for wider ones
_SHORT = 256  # numbers that are sorted as they are


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
        logits_BV: float32, on a CPU; changed in place.
        k_B: logits to keep, from 1 to V; V means all. None if every row keeps all.
        p_B: float32; probability to keep. None if every row keeps all.

    Returns:
        ``logits_BV``, with minus infinity for what is masked: equal to what vLLM's ``apply_top_k_top_p`` returns.
    """
    vocab_size = logits_BV.shape[1]
    if k_B is None or p_B is None or (length := _window_length(k_B, vocab_size)) >= vocab_size:
        masked_BV: torch.Tensor = apply_top_k_top_p(logits_BV, k_B, p_B)
        return masked_BV
    window_BW, ids_BW = (found.flip(1) for found in logits_BV.topk(length, dim=1))
    kth_B1 = window_BW.gather(1, (length - k_B.long()).clamp(min=0).unsqueeze(1))
    lowest_B = window_BW[:, 0]
    # Not a row of NaN only. What is minus infinity stays so wherever it is.
    has_all_B = (lowest_B < kth_B1.squeeze(1)) | (lowest_B == -torch.inf)
    others = ((k_B == vocab_size) | ~has_all_B).nonzero().squeeze(1)
    others_BV = logits_BV[others]
    window_BW.masked_fill_(window_BW < kth_B1, -torch.inf)
    is_dropped_BW = window_BW.softmax(dim=1).cumsum(dim=1) <= 1 - p_B.unsqueeze(1)
    is_dropped_BW[:, -1] = False
    is_cut_BW = (window_BW[:, :-1] == window_BW[:, 1:]) & (is_dropped_BW[:, :-1] != is_dropped_BW[:, 1:])
    for index in (is_cut_BW & (window_BW[:, 1:] > -torch.inf)).any(dim=1).nonzero().squeeze(1).tolist():
        ids_BW[index] = torch.from_numpy(_largest_ids(logits_BV[index].numpy(), length))
    logits_BV.fill_(-torch.inf).scatter_(1, ids_BW, window_BW.masked_fill(is_dropped_BW, -torch.inf))
    if len(others):
        logits_BV[others] = apply_top_k_top_p(others_BV, k_B[others], p_B[others])
    return logits_BV


def _window_length(k_B: torch.Tensor, vocab_size: int) -> int:
    """Logits in a window that holds the k largest of each row that has a top-k."""
    length = int(k_B.masked_fill(k_B == vocab_size, 0).max()) + _SPARE
    return length + (vocab_size - length) % _LANES


def _largest_ids(row_V: np.ndarray, count: int) -> np.ndarray:
    """Ids [count] of the largest logits of a row, in the order that ``row_V.sort()`` of torch gives them.

    torch sorts with ``std::sort`` of libstdc++, which splits a range at the median of three of its numbers, and then
    sorts both parts. Numbers are exchanged in between, which decides the order of equal ones. This function makes the
    same exchanges, but goes on with the upper part alone. torch sorts what is left.
    """
    numbers_N, ids_N = row_V.copy(), np.arange(len(row_V))
    while len(ids_N) > _SHORT:
        three = [1, len(ids_N) // 2, len(ids_N) - 1]
        a, b, c = numbers_N[three]
        median = three[1 if b < c else 2 if a < c else 0] if a < b else three[0 if a < c else 2 if b < c else 1]
        _exchange(numbers_N, 0, median)
        # From both ends, a number that is at least the median changes places with one that is at most the median.
        low = np.flatnonzero(numbers_N[1:] >= numbers_N[0]) + 1
        high = np.flatnonzero(numbers_N[1:] <= numbers_N[0])[::-1] + 1
        pairs = min(len(low), len(high))
        pairs = int(np.count_nonzero(low[:pairs] < high[:pairs]))
        start = min([*low[pairs : pairs + 1], *high[max(pairs - 1, 0) : pairs]])
        if len(ids_N) - start < count:
            _exchange(numbers_N, 0, median)
            break
        _exchange(ids_N, 0, median)
        numbers_N[high[:pairs]], ids_N[high[:pairs]] = numbers_N[low[:pairs]], ids_N[low[:pairs]]
        numbers_N, ids_N = numbers_N[start:], ids_N[start:]
    order_N = torch.from_numpy(numbers_N).sort().indices.numpy()
    largest: np.ndarray = ids_N[order_N[-count:]]
    return largest


def _exchange(array: np.ndarray, one: int, other: int) -> None:
    array[[one, other]] = array[[other, one]]
