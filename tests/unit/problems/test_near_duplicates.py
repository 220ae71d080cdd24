"""Tests the search for near duplicates against a direct computation of the similarity."""

from __future__ import annotations

import random
import string

import pytest

from megatron_ssd.problems import near_duplicates
from megatron_ssd.problems.near_duplicates import NearDuplicates

WORDS = [a + b for a in string.ascii_lowercase for b in string.ascii_lowercase]


def _texts(count: int, length: int = 120) -> list[list[str]]:
    rng = random.Random(0)
    return [rng.choices(WORDS, k=length) for _ in range(count)]


def _similarity(one: list[str], other: list[str]) -> float:
    a, b = ({tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (one, other))
    return len(a & b) / len(a | b)


@pytest.mark.parametrize(("changed", "found"), [(0, True), (1, True), (30, False), (120, False)])
def test_a_text_is_found_if_it_is_similar_enough(changed: int, found: bool) -> None:
    texts = _texts(20)
    kept = NearDuplicates(0.8)
    for name, text in enumerate(texts, start=100):
        assert kept.find_or_add(" ".join(text), name) is None
    other = [*texts[7][: 120 - changed], *["new"] * changed]
    assert (_similarity(texts[7], other) >= 0.8) == found
    assert kept.find_or_add(" ".join(other), 1) == (107 if found else None)


def test_every_text_is_found_again_after_the_table_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_CHUNK", 64)
    kept = NearDuplicates(0.7)
    kept._bits, kept._table = 4, kept._table[:16]
    texts = [" ".join(text) for text in _texts(300, length=40)]
    assert all(kept.find_or_add(text, name) is None for name, text in enumerate(texts))
    assert len(kept._table) >= 300 * kept._bands * 3
    assert [kept.find_or_add(text.upper().replace(" ", "  "), 999) for text in texts] == list(range(300))


def test_the_first_of_several_is_named() -> None:
    kept = NearDuplicates(0.9)
    (text,) = _texts(1)
    first, second = " ".join(text), " ".join([*text[:100], *["x"] * 20])
    assert (kept.find_or_add(first, 5), kept.find_or_add(second, 3)) == (None, None)
    assert kept.find_or_add(first, 9) == 5
    assert kept.find_or_add(second, 9) == 3


def test_a_short_text_is_a_single_shingle() -> None:
    kept = NearDuplicates(0.8)
    assert kept.find_or_add("sort it", 1) is None
    assert kept.find_or_add("Sort, it!", 2) == 1
    assert kept.find_or_add("sort them", 3) is None
