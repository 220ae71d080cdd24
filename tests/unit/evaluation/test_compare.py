"""What counts as the expected output, and what does not."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ssd.evaluation.compare import stdout_difference, value_difference


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ("1 2\n3\n", "1 2 3"),
        ("", "  \n"),
        ("YES\r\nNO", "YES\nNO\n"),
        ("0.3333333", "0.33333333333"),
        ("3.0", "3"),
        ("007", "7"),
        ("1e3", "1000.0"),
        ("-0.0", "0"),
        ("nan", "nan"),
    ],
)
def test_equal_outputs(actual: str, expected: str):
    assert stdout_difference(actual, expected) is None


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ("1 2", "1 2 3"),
        ("1 2 3", "1 2"),
        ("yes", "YES"),
        ("0.334", "0.3333"),
        ("1000000007.4", "1000000007"),
        ("123456789012345678", "123456789012345679"),
        ("", "0"),
        ("inf", "1e999"),
        ("1_000", "1000"),
        ("12", "1 2"),
    ],
)
def test_different_outputs(actual: str, expected: str):
    assert stdout_difference(actual, expected) is not None


def test_the_tolerance_is_relative_above_one_and_absolute_below():
    assert stdout_difference("1000000.5", "1000000.0") is None
    assert stdout_difference("0.0000005", "0.0") is None
    assert stdout_difference("0.00001", "0.0") is not None


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ([1, 2], [1, 2]),
        ([1.0, 2], [1, 2]),
        (0.1 + 0.2, 0.3),
        ({"a": [1.0000000001]}, {"a": [1.0]}),
        (True, 1),
        (None, None),
        (float("nan"), float("nan")),
        (10**400, 10**400),
    ],
)
def test_equal_values(actual: object, expected: object):
    assert value_difference(json.dumps(actual), json.dumps(expected)) is None


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ([1, 2], [2, 1]),
        ([1], 1),
        ("1", 1),
        (None, 0),
        (None, []),
        ([[1]], [1]),
        ({"a": 1}, {"a": 1, "b": 2}),
        (2.001, 2.0),
        (3, 4),
        (None, 1.0),
    ],
)
def test_different_values(actual: object, expected: object):
    assert value_difference(json.dumps(actual), json.dumps(expected)) is not None


def test_a_deeply_nested_result_is_different_and_no_crash():
    deep = "[" * 100_000 + "]" * 100_000
    assert value_difference(deep, "[]") is not None


def test_a_huge_integer_against_a_float_is_different_and_no_crash():
    assert value_difference(json.dumps(10**400), "1.5") is not None


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(_VALUES)
def test_every_value_equals_itself(value: object):
    assert value_difference(json.dumps(value), json.dumps(value)) is None


@given(st.lists(st.integers() | st.text(st.characters(categories=["L"]), min_size=1), max_size=6))
def test_white_space_never_matters(tokens: list[object]):
    assert stdout_difference("\n".join(map(str, tokens)), "  ".join(map(str, tokens)) + "\n") is None
