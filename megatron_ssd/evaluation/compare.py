"""Whether what a program gave is what was expected.

Standard output is compared token by token (split at white space), functions' results as JSON values:
- A token is right when it is the expected text, or when both are numbers and equal: exactly where the expected one is
  an integer, within ``TOLERANCE`` where it is written with a fraction or an exponent.
- JSON values are right when they have the same shape and equal leaves: a tuple is a list, 1 and 1.0 and true are equal
  as in Python, and floating-point leaves agree within ``TOLERANCE``. Two NaN agree.
``TOLERANCE`` is relative to the expected number, and absolute below 1.
"""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from typing import Any

TOLERANCE = 1e-6
_INTEGER = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?")
_LONGEST_INT = 4000  # Python refuses to read longer ones; as decimals they compare just as exactly
_SHOWN = 60


def stdout_difference(actual: str, expected: str) -> str | None:
    """None where the outputs agree, else one line on the first difference."""
    got, want = actual.split(), expected.split()
    for index, (token, wanted) in enumerate(zip(got, want, strict=False)):
        if token != wanted and not _same_number(token, wanted):
            return f"token {index + 1}: got {_short(token)}, expected {_short(wanted)}"
    if len(got) != len(want):
        return f"got {len(got)} tokens, expected {len(want)}"
    return None


def value_difference(actual_json: str, expected_json: str) -> str | None:
    """None where the JSON values agree, else one line on the first difference.

    Raises:
        ValueError: ``expected_json`` is not JSON, which is the benchmark's fault.
    """
    wanted = _load(expected_json)
    try:
        same = _same_value(_load(actual_json), wanted)
    except (ValueError, RecursionError):  # written by hand, or nested too deeply
        same = False
    return None if same else f"got {_short(actual_json)}, expected {_short(expected_json)}"


def _load(text: str) -> Any:
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= _LONGEST_INT else Decimal(digits))


def _same_number(token: str, wanted: str) -> bool:
    if not (_NUMBER.fullmatch(token) and _NUMBER.fullmatch(wanted)):
        return False
    if _INTEGER.fullmatch(wanted):
        return Decimal(token) == Decimal(wanted)
    return _close(float(token), float(wanted))


def _same_value(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return (
            isinstance(value, list)
            and len(value) == len(wanted)
            and all(_same_value(v, w) for v, w in zip(value, wanted, strict=True))
        )
    if isinstance(wanted, dict):
        return (
            isinstance(value, dict)
            and value.keys() == wanted.keys()
            and all(_same_value(value[key], w) for key, w in wanted.items())
        )
    if isinstance(wanted, float) and isinstance(value, int | float):
        return _close(value, wanted)
    return bool(value == wanted)


def _close(value: float, wanted: float) -> bool:
    if value == wanted or (value != value and wanted != wanted):  # the second: both are NaN
        return True
    # A long integer has no difference to a float; it is compared as it stands.
    room = TOLERANCE * max(1.0, abs(wanted))
    return wanted - room <= value <= wanted + room and math.isfinite(wanted)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "..."
