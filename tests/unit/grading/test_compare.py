"""Tests for the comparison of an output with the expected one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ssd.grading.compare import stdout_difference, value_difference
from megatron_ssd.sandbox.inside.program import encode


class EqualsEverything(list):
    """A list that claims to equal everything."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def written(value: object) -> str:
    """``value`` as the sandbox writes a result."""
    return json.dumps(encode(value))


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ("\n 1  2 \n3\n\n", "1 2\n3"),
        ("", "  \n"),
        ("YES\r\nNO", "YES\nNO\n"),
        ("Case 1: a", "Case 1: a  "),
        ("3.0", "3"),
        ("007", "7"),
        ("1e3", "1000.0"),
        ("-0.0", "0"),
        ("nan", "nan"),
        ("1_000", "1000"),
        ("50000000000000001 2.50", "50000000000000001.0 2.5"),
    ],
)
def test_equal_outputs(actual: str, expected: str):
    assert stdout_difference(actual, expected) is None


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ("1 2", "1 2 3"),
        ("1 2 3", "1 2"),
        ("1 2\n3", "1 2 3"),
        ("1\n\n2", "1\n2"),
        ("a  b", "a b"),
        ("x 1.0", "x 1"),
        ("NaN 1.0", "nan 1"),
        ("0.3333333", "0.33333333333"),
        ("1000000.0000000001", "1000000.0"),
        ("yes", "YES"),
        ("0.334", "0.3333"),
        ("1000000007.4", "1000000007"),
        ("123456789012345678", "123456789012345679"),
        ("", "0"),
        ("inf", "1e999"),
        ("sNaN", "1"),
        ("12", "1 2"),
    ],
)
def test_different_outputs(actual: str, expected: str):
    assert stdout_difference(actual, expected) is not None


def near(actual: str, expected: str) -> bool:
    return stdout_difference(actual, expected, tolerance=1e-6) is None


def test_a_tolerance_is_relative_above_one_and_absolute_below():
    assert near("1000000.5", "1000000.0")
    assert near("0.0000005", "0.0")
    assert near("0.3333333 1", "0.33333333333 1.0")
    assert not near("0.00001", "0.0")


@pytest.mark.parametrize(
    ("actual", "expected"), [("1000000007.4", "1000000007"), ("inf", "1e400"), ("1.0", "x"), ("1.0", "1.0 1.0")]
)
def test_a_tolerance_does_not_apply_to_integers_words_or_counts(actual: str, expected: str):
    assert not near(actual, expected)


def test_a_tolerance_applies_inside_of_values():
    assert value_difference('[0.30000000000000004, {"tuple": [1.0]}]', "[0.3, [1.0]]", tolerance=1e-6) is not None
    assert value_difference('[0.30000000000000004, {"dict": [["a", 2]]}]', '[0.3, {"a": 2.0}]', tolerance=1e-6) is None


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ([1, 2], [1, 2]),
        ([1.0, 2], [1, 2]),
        ((1, [2]), [1, [2]]),
        (EqualsEverything((1, 2)), [1, 2]),
        ({"a": [1]}, {"a": [1.0]}),
        (True, 1),
        (None, None),
        (10**400, 10**400),
    ],
)
def test_equal_values(actual: object, expected: object):
    assert value_difference(written(actual), json.dumps(expected)) is None


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
        (0.1 + 0.2, 0.3),
        ([(1, 2)], [[1, 2]]),
        ({1, 2}, [1, 2]),
        ({1: 2}, {"1": 2}),
        (EqualsEverything((1, 2)), [1, 3]),
        (3, 4),
        (None, 1.0),
    ],
)
def test_different_values(actual: object, expected: object):
    assert value_difference(written(actual), json.dumps(expected)) is not None


@pytest.mark.parametrize(
    "forged", ["", "{", "{}", '{"a": 1, "b": 2}', '{"set": [[1]]}', '{"object": 0}', '{"x": []}', '{"type": "open"}']
)
def test_a_malformed_value_is_different(forged: str):
    assert value_difference(forged, "[]") is not None


def test_a_deeply_nested_value_is_different():
    deep = "[" * 100_000 + "]" * 100_000
    assert value_difference(deep, "[]") is not None


def test_integers_of_any_length_are_compared_exactly():
    digits = "7" * 5000
    assert value_difference(digits, digits) is None
    assert value_difference(digits + "0", digits + "1") is not None


def test_a_huge_integer_differs_from_a_float():
    assert value_difference(json.dumps(10**400), "1.5") is not None


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(_VALUES)
def test_every_value_equals_itself(value: object):
    assert value_difference(written(value), json.dumps(value)) is None


@given(st.lists(st.integers() | st.decimals(allow_nan=False, allow_infinity=False), min_size=1, max_size=6))
def test_white_space_between_numbers_is_ignored(numbers: list[object]):
    line = list(map(str, numbers))
    assert stdout_difference(" ".join(line), "\n\t" + "  ".join(line) + " \n") is None
