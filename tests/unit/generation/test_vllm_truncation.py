"""Compares top-k with top-p of this project with vLLM's own, bit by bit."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

if importlib.util.find_spec("vllm") is None:
    pytest.skip("needs vLLM (make venv)", allow_module_level=True)

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


@settings(max_examples=400)
@given(batches())
def test_masked_logits_equal_those_of_vllm(
    batch: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None],
) -> None:
    assert_same(*batch)


@pytest.mark.parametrize("vocab_size", [49_152, 151_936])
def test_masked_logits_of_a_real_vocabulary_equal_those_of_vllm(vocab_size: int) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(24, vocab_size, generator=generator) * 3
    logits[8:] = logits[8:].bfloat16() / 1.5  # as from a model in bfloat16, with many ties
    logits[20:, 100:] = -torch.inf
    k = torch.tensor([1, 20, 20, 50, 300, 1000, vocab_size, 20] * 3, dtype=torch.int32)
    p = torch.tensor([0.8, 0.6, 0.95, 1.0, 0.9, 0.99, 0.8, 0.999] * 3)
    assert_same(logits, k, p)


def test_the_vocabulary_is_not_sorted_where_k_tokens_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    k, p = torch.tensor([5, 20, 100, 1]), torch.full((4,), 0.9)
    expected = topk_topp_sampler.apply_top_k_top_p(logits.clone(), k, p)
    monkeypatch.delattr(vllm_truncation, "apply_top_k_top_p")
    assert torch.equal(truncate(logits, k, p), expected)
