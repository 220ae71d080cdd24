"""Compares top-k with top-p of this project with vLLM's own, bit by bit; the argument names the check to run.

vLLM is imported here and not by pytest's process: the import takes seconds and changes the environment.
"""

from __future__ import annotations

import sys
from unittest.mock import patch

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.v1.sample.ops import topk_topp_sampler

from megatron_ssd.generation import vllm_truncation
from megatron_ssd.generation.vllm_truncation import truncate

NO_NUMBERS = [-float("inf"), float("inf"), float("nan")]


def assert_same(logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor | None) -> None:
    expected = topk_topp_sampler.apply_top_k_top_p(logits.clone(), k, p)
    found = logits.clone()
    assert truncate(found, k, p) is found
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Logits of few different values, with k and p for each row."""
    rows, vocab_size = draw(st.integers(1, 5)), draw(st.sampled_from([40, 100, 127, 331, 1000, 3001]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    # Few levels give many ties; the last choice gives none.
    spread, levels = draw(st.sampled_from([(1, 1), (2, 4), (6, 4), (60, 1), (3, 1 << 20)]))
    logits = torch.randint(-spread * levels, spread * levels + 1, (rows, vocab_size), generator=generator) / levels
    for row in logits:
        if special := draw(st.lists(st.sampled_from(NO_NUMBERS), max_size=2)):
            number = draw(st.sampled_from([1, 3, vocab_size - 5, vocab_size]))
            where = torch.randperm(vocab_size, generator=generator)[:number]
            row[where] = torch.tensor(special)[torch.randint(0, len(special), (number,), generator=generator)]
    ks = st.one_of(st.integers(1, 9), st.integers(1, vocab_size), st.just(vocab_size))
    ps = st.one_of(st.sampled_from([1e-9, 0.5, 0.8, 1 - 2**-24, 1.0]), st.floats(1e-3, 1.0))
    k = torch.tensor(draw(st.lists(ks, min_size=rows, max_size=rows)), dtype=torch.int32)
    p = torch.tensor(draw(st.lists(ps, min_size=rows, max_size=rows)), dtype=torch.float32)
    return logits, draw(st.sampled_from([k, k, k, None])), draw(st.sampled_from([p, p, p, None]))


@settings(max_examples=150, deadline=None, database=None)
@given(batches())
def many_ties(batch: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]) -> None:
    """Few different logits, with infinities and NaN, in batches of different k and p."""
    assert_same(*batch)


def real_vocabularies() -> None:
    """Vocabularies of published models, with the ties of bfloat16."""
    for vocab_size in (49_152, 151_936):
        generator = torch.Generator().manual_seed(vocab_size)
        logits = torch.randn(24, vocab_size, generator=generator) * 3
        logits[8:] = logits[8:].bfloat16() / 1.5
        logits[20:, 100:] = -torch.inf
        k = torch.tensor([1, 20, 20, 50, 300, 1000, vocab_size, 20] * 3, dtype=torch.int32)
        assert_same(logits, k, torch.tensor([0.8, 0.6, 0.95, 1.0, 0.9, 0.99, 0.8, 0.999] * 3))


def no_sort() -> None:
    """vLLM's own function, which sorts the vocabulary, is not called for rows with a top-k."""
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    k, p = torch.tensor([5, 20, 100, 1]), torch.full((4,), 0.9)
    expected = topk_topp_sampler.apply_top_k_top_p(logits.clone(), k, p)
    with patch.object(vllm_truncation, "apply_top_k_top_p", None):
        assert torch.equal(truncate(logits, k, p), expected)


if __name__ == "__main__":
    {check.__name__: check for check in (many_ties, real_vocabularies, no_sort)}[sys.argv[1]]()
