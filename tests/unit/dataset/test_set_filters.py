"""Tests filters that compare a sample with the other samples."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from megatron_ssd.config.dataset import FilterConfig, LoopConfig
from megatron_ssd.dataset.set_filters import (
    FACTS,
    REASONS,
    drop_reasons,
    needs_first_pass,
    outside_band,
    repeats,
    response_digest,
    shortest,
)
from tests.helpers.paths import ROOT
from tests.helpers.samples_run import sample

scores = st.lists(st.one_of(st.floats(-9, 0, width=32), st.just(math.nan)), max_size=30)


def facts(samples: list[tuple[str | None, int, int, float]]) -> np.ndarray:
    """Facts from tuples of (reason, characters, digest, score)."""
    return np.array([(REASONS.index(why), size, 0, digest, score) for why, size, digest, score in samples], dtype=FACTS)


def reasons(samples: list[tuple[str | None, int, int, float]], **filters: object) -> list[str | None]:
    return [REASONS[index] for index in drop_reasons(facts(samples), FilterConfig(**filters))]  # type: ignore[arg-type]


def test_shortest_rounds_down_and_takes_the_earlier_of_equals() -> None:
    lengths = np.array([5, 3, 3, 9, 3, 8, 7, 6])
    assert shortest(lengths, 0.25).nonzero()[0].tolist() == [1, 2]
    assert not shortest(lengths, 0.1).any()
    assert not shortest(lengths, 0.0).any()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=30))
def test_all_but_the_first_of_equal_digests_repeat(digests: list[tuple[int, int]]) -> None:
    halves = np.array(digests, dtype=np.uint64).reshape(-1, 2)
    expected = [pair in digests[:index] for index, pair in enumerate(digests)]
    assert repeats(halves[:, 0], halves[:, 1]).tolist() == expected


@given(values=scores, low=st.integers(0, 9), width=st.integers(1, 10))
def test_the_band_is_the_middle_of_the_sorted_scores(values: list[float], low: int, width: int) -> None:
    band = low / 10, min(low + width, 10) / 10
    scored = sorted((value, index) for index, value in enumerate(values) if not math.isnan(value))
    kept = {index for _, index in scored[round(band[0] * len(scored)) : round(band[1] * len(scored))]}
    outside = outside_band(np.array(values, dtype=np.float32), band)
    assert {index for index, value in enumerate(values) if not outside[index] and not math.isnan(value)} == kept
    assert not outside[np.isnan(np.array(values, dtype=np.float32))].any()


def test_each_filter_sees_only_what_earlier_filters_keep() -> None:
    samples = [
        ("empty", 0, 9, math.nan),
        (None, 40, 1, -1.0),
        (None, 10, 1, -9.0),  # repeats the sample before, so it cannot be the shortest
        (None, 20, 2, -9.0),  # the shortest of four, so its score does not count for the quantiles
        (None, 50, 3, -3.0),
        (None, 60, 4, -2.0),
    ]
    filters = {"drop_duplicates": True, "drop_shortest_fraction": 0.25, "proxy_band": (0.34, 1.0)}
    assert reasons(samples, **filters) == ["empty", None, "duplicate", "shortest", "outside_proxy_band", None]


def test_samples_without_a_score_have_their_own_reason() -> None:
    samples = [(None, 1, 1, math.nan), (None, 1, 2, -1.0), ("empty", 0, 3, math.nan)]
    assert reasons(samples, proxy_band=(0.0, 1.0)) == ["no_proxy_score", None, "empty"]
    assert reasons(samples) == [None, None, "empty"]


def test_a_set_without_samples_has_no_reasons() -> None:
    filters = FilterConfig(drop_duplicates=True, drop_shortest_fraction=0.5, proxy_band=(0.1, 0.9))
    assert drop_reasons(facts([]), filters).tolist() == []


@pytest.mark.parametrize(
    ("filters", "needed"),
    [
        ({}, False),
        ({"drop_no_code": True, "drop_unparsable": True, "drop_loops": True, "length_capped": "mask_end"}, False),
        ({"drop_duplicates": True}, True),
        ({"drop_shortest_fraction": 0.1}, True),
        ({"proxy_band": (0.0, 0.5)}, True),
    ],
)
def test_which_filters_need_a_first_pass(filters: dict[str, object], needed: bool) -> None:
    assert needs_first_pass(FilterConfig(**filters)) is needed  # type: ignore[arg-type]


def test_digests_cover_the_problem_and_the_text_without_white_space() -> None:
    one = sample("x = 1\n\n  y")
    assert response_digest(one) == response_digest(sample(" x  =\t1 y\n"))
    assert response_digest(one) != response_digest(sample("x = 1 yy"))
    assert response_digest(one) != response_digest(replace(one, problem_id="q"))
    assert all(0 <= half < 1 << 64 for half in response_digest(sample("\ud800")))


def test_the_documentation_names_every_reason_and_setting() -> None:
    text = (ROOT / "docs" / "guides" / "filters.md").read_text(encoding="utf-8")
    settings = [field.name for field in dataclasses.fields(FilterConfig) if field.name != "loop"]
    settings += [f"loop.{field.name}" for field in dataclasses.fields(LoopConfig)]
    assert [reason for reason in REASONS if reason and f"`{reason}`" not in text] == []
    assert [name for name in settings if f"`{name}" not in text and f"filters.{name}" not in text] == []
