"""Whether what a program gave is what was expected: LiveCodeBench's rules, so that scores compare with published ones.

Standard output:
1. White space around the whole output is cut off, then around each line. The number of lines must be the same.
2. A line is right where it is the expected text, character by character.
3. Otherwise it is right where both lines, split at white space, are all decimal numbers, as many, and equal one by one:
   3 is 3.0 is 3e0, to any number of digits. There is no tolerance, and one word in a line makes it text.

Results of functions are right where Python finds them equal to the expected JSON value: 1 is 1.0 is true, nothing is
close enough. A tuple counts as a list at the outermost level only. Equality is that of plain values (a program's own
``__eq__`` is not asked).

Programs write what is compared here, so what it costs must not depend on their wishes: no set and no dictionary with
keys other than text is ever built (its hashes could all collide; JSON has none, so it is unequal as it stands), and an
output of other length is not taken apart.

With a ``tolerance`` above 0, which LiveCodeBench does not have, numbers also agree where they differ by at most that,
relative to the expected number and absolute below 1; integers, as the expected output writes them, stay exact.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal, DecimalException
from typing import Any

from megatron_ssd.sandbox.inside.values import decode

_LONGEST_INT = 4000  # Python refuses to read longer ones; as decimals they compare just as exactly
_SHOWN = 60
# An encoded value that equals the expected one is at most this much longer: numbers in other words, wrapped tuples.
_LONGER, _LONGER_ANYHOW = 64, 1 << 16
_NUMBERS = ("complex", "Decimal", "Fraction")


def stdout_difference(actual: str, expected: str, *, tolerance: float = 0.0) -> str | None:
    """None where the outputs agree, else one line on the first difference."""
    got, want = actual.strip(), expected.strip()
    if got.count("\n") != want.count("\n"):
        return f"got {got.count(chr(10)) + 1} lines, expected {want.count(chr(10)) + 1}"
    for number, (line, wanted) in enumerate(zip(_lines(got), _lines(want), strict=True), start=1):
        if line != wanted and not _same_numbers(line, wanted, tolerance):
            return f"line {number}: got {_short(line)}, expected {_short(wanted)}"
    return None


def value_difference(actual: str, expected_json: str, *, tolerance: float = 0.0) -> str | None:
    """None where the values agree, else one line on the first difference.

    Args:
        actual: a value as ``inside.values`` writes it, or anything, since programs can write here.
        expected_json: JSON.
        tolerance: see the module.

    Raises:
        ValueError: ``expected_json`` is not JSON, which is the benchmark's fault.
    """
    wanted = _load(expected_json)
    try:
        is_long = len(actual) > _LONGER * len(expected_json) + _LONGER_ANYHOW
        same = not is_long and _same_value(_plain(_load(actual), is_outermost=True), wanted, tolerance)
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError):  # written by hand, or nested too deeply
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
    """Whether two numbers of a line are near; one that is written as an integer is exact."""
    if value == wanted:
        return True
    if not (value.is_finite() and wanted.is_finite()) or wanted.as_tuple().exponent == 0:
        return False
    return _near(float(value), float(wanted), tolerance)


def _near(value: float, wanted: float, tolerance: float) -> bool:
    if value == wanted:
        return True
    # A long integer has no difference to a float; it is compared as it stands.
    room = tolerance * max(1.0, abs(wanted))
    return wanted - room <= value <= wanted + room and math.isfinite(wanted)


def _load(text: str) -> Any:
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= _LONGEST_INT else Decimal(digits))


def _plain(value: Any, *, is_outermost: bool = False) -> Any:
    """What ``inside.values`` wrote, where it may equal a JSON value. Raises ``ValueError`` where it does not."""
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
        return decode(value)
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
