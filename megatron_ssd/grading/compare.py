"""Compares a program's output with the expected one by LiveCodeBench's rules.

Scores are therefore comparable with published ones.

Standard output:
1. White space around the output is removed, then around each line. The number of lines must be the same.
2. A line is correct if it is the expected text, character by character.
3. Otherwise it is correct if both lines, split at white space, consist of the same number of decimal numbers that are
   equal one by one: 3 equals 3.0 and 3e0, with any number of digits. There is no tolerance, and a line with a word is
   text.

Results of functions are correct if Python finds them equal to the expected JSON value: 1 equals 1.0 and true, and
closeness does not count. A tuple counts as a list only at the outermost level. Plain values are compared; a program's
own ``__eq__`` is never called.

The compared texts are written by programs, which must not control the cost of comparing them. A set, or a dictionary
with other keys than text, is never built: its hashes could all collide. JSON has no such values, so they are always
unequal. An output with another number of lines or words is not split.

With a ``tolerance`` above 0, which LiveCodeBench does not have, numbers also agree if they differ by at most that much,
relative to the expected number, or absolute if it is below 1. Numbers that the expected output writes as integers must
be equal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from decimal import Decimal, DecimalException
from fractions import Fraction
from typing import Any

_LONGEST_INT = 4000  # Python refuses to read longer ones; decimals are compared just as exactly
_SHOWN = 60
# An encoded value that equals the expected one is at most this much longer (other ways to write numbers, tuples).
_LENGTH_FACTOR, _EXTRA_LENGTH = 64, 1 << 16
_NUMBERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda digits: int(digits, 16),
    "complex": lambda parts: complex(*parts),
    "Decimal": Decimal,
    "Fraction": lambda parts: Fraction(*map(_plain, parts)),
}


def stdout_difference(actual: str, expected: str, *, tolerance: float = 0.0) -> str | None:
    """None if the outputs agree, else one line about the first difference."""
    got, want = actual.strip(), expected.strip()
    if got.count("\n") != want.count("\n"):
        return f"got {got.count(chr(10)) + 1} lines, expected {want.count(chr(10)) + 1}"
    for number, (line, wanted) in enumerate(zip(_lines(got), _lines(want), strict=True), start=1):
        if line != wanted and not _same_numbers(line, wanted, tolerance):
            return f"line {number}: got {_short(line)}, expected {_short(wanted)}"
    return None


def value_difference(actual: str, expected_json: str, *, tolerance: float = 0.0) -> str | None:
    """None if the values agree, else one line about the first difference.

    Args:
        actual: a value in the encoding of ``inside.program``, or any text, since programs can write here.
        expected_json: JSON.
        tolerance: see the module docstring.

    Raises:
        ValueError: ``expected_json`` is not JSON (an error of the benchmark).
    """
    wanted = _load(expected_json)
    try:
        is_long = len(actual) > _LENGTH_FACTOR * len(expected_json) + _EXTRA_LENGTH
        same = not is_long and _same_value(_plain(_load(actual), is_outermost=True), wanted, tolerance)
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError):  # not of ``encode``, or too deep
        same = False
    return None if same else f"got {_short(actual)}, expected {_short(expected_json)}"


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n")]


def _same_numbers(line: str, wanted: str, tolerance: float) -> bool:
    try:
        words = wanted.split()
        found = line.split(maxsplit=len(words))
        if len(found) != len(words):
            return False
        got, want = [[Decimal(token) for token in tokens] for tokens in (found, words)]
        return got == want or (tolerance > 0 and all(_close(g, w, tolerance) for g, w in zip(got, want, strict=True)))
    except DecimalException:  # a word, or a signalling NaN
        return False


def _close(value: Decimal, wanted: Decimal, tolerance: float) -> bool:
    """Whether two numbers of a line agree; a number that is written as an integer must be equal."""
    if value == wanted:
        return True
    if not (value.is_finite() and wanted.is_finite()) or wanted.as_tuple().exponent == 0:
        return False
    return _near(float(value), float(wanted), tolerance)


def _near(value: float, wanted: float, tolerance: float) -> bool:
    if value == wanted:
        return True
    # A long integer cannot be subtracted from a float; comparing works.
    margin = tolerance * max(1.0, abs(wanted))
    return wanted - margin <= value <= wanted + margin and math.isfinite(wanted)


def _load(text: str) -> Any:
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= _LONGEST_INT else Decimal(digits))


def _plain(value: Any, *, is_outermost: bool = False) -> Any:
    """Decodes a value of ``inside.program`` that may equal a JSON value. Raises ``ValueError`` if it cannot."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((name, content),) = value.items()
    if name == "dict" and all(isinstance(key, str) for key, _ in content):
        return {key: _plain(item) for key, item in content}
    if name == "tuple" and is_outermost:
        return _plain(list(content))
    if name in _NUMBERS:
        return _NUMBERS[name](content)
    raise ValueError(f"no JSON value equals a {name}")


def _same_value(value: Any, wanted: Any, tolerance: float) -> bool:
    if tolerance == 0:
        return bool(value == wanted)
    if isinstance(wanted, list) and isinstance(value, list):
        return len(value) == len(wanted) and all(
            _same_value(v, w, tolerance) for v, w in zip(value, wanted, strict=True)
        )
    if isinstance(wanted, dict) and isinstance(value, dict):
        return value.keys() == wanted.keys() and all(_same_value(value[key], w, tolerance) for key, w in wanted.items())
    if isinstance(wanted, float) and isinstance(value, int | float):
        return _near(value, wanted, tolerance)
    return bool(value == wanted)


def _short(text: str) -> str:
    line = " ".join(text[: 10 * _SHOWN].split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "..."
