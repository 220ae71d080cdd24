"""Whether what a program gave is what was expected: LiveCodeBench's rules, so that scores compare with published ones.

Standard output:
1. White space around the whole output is cut off, then around each line. The number of lines must be the same.
2. A line is right where it is the expected text, character by character.
3. Otherwise it is right where both lines, split at white space, are all decimal numbers, as many, and equal one by one:
   3 is 3.0 is 3e0, to any number of digits. There is no tolerance, and one word in a line makes it text.

Results of functions are right where Python finds them equal to the expected JSON value: 1 is 1.0 is true, nothing is
close enough. A tuple counts as a list at the outermost level only. Equality is that of plain values (a program's own
``__eq__`` is not asked).

With a ``tolerance`` above 0, which LiveCodeBench does not have, numbers also agree where they differ by at most that,
relative to the expected number and absolute below 1; integers, as the expected output writes them, stay exact.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal, DecimalException
from typing import Any

from megatron_ssd.evaluation.inside.values import decode

_LONGEST_INT = 4000  # Python refuses to read longer ones; as decimals they compare just as exactly
_SHOWN = 60


def stdout_difference(actual: str, expected: str, *, tolerance: float = 0.0) -> str | None:
    """None where the outputs agree, else one line on the first difference."""
    got, want = _lines(actual), _lines(expected)
    if len(got) != len(want):
        return f"got {len(got)} lines, expected {len(want)}"
    for number, (line, wanted) in enumerate(zip(got, want, strict=True), start=1):
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
        value = decode(_load(actual))
        same = _same_value(list(value) if isinstance(value, tuple) else value, wanted, tolerance)
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError):  # written by hand, or nested too deeply
        same = False
    return None if same else f"got {_short(actual)}, expected {_short(expected_json)}"


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_numbers(line: str, wanted: str, tolerance: float) -> bool:
    try:
        got, want = [[Decimal(token) for token in text.split()] for text in (line, wanted)]
        if len(got) != len(want):
            return False
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
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "..."
