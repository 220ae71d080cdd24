"""Converts the results of functions to JSON, from which ``grading.compare`` makes plain data again.

Scalars and lists are encoded as themselves, anything else as an object with one key, its type: ``{"tuple": [1, 2]}``. A
subclass is encoded as its base (a named tuple as a tuple, a Counter as a dictionary) and a NumPy scalar as a Python
number, so the reading side never calls a method that a program wrote. Pickle is not safe, because the objects that it
can build are hard to limit. A long integer is written in hexadecimal digits, since the time to write decimal digits is
quadratic.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

_LONG_BITS = 4096
# Type -> plain form, by the base type's own methods: a subclass may override its methods.
_SCALARS: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (int, lambda value: int.__add__(value, 0)),
    (float, lambda value: float.__mul__(value, 1.0)),
    (str, lambda value: str.__getitem__(value, slice(None))),
)
_SEQUENCES: dict[str, type] = {
    "list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque, "bytes": bytes,
    "bytearray": bytearray,
}  # fmt: skip
_WRITTEN: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "complex": (complex, lambda v: [v.real, v.imag]),
    "Decimal": (Decimal, str),
    "Fraction": (Fraction, lambda v: [encode(v.numerator), encode(v.denominator)]),
    "range": (range, lambda v: [encode(v.start), encode(v.stop), encode(v.step)]),
}
_PLAIN = frozenset({type(None), bool, float, str})


def encode(value: Any) -> Any:
    """Returns ``value`` in a form for ``json.dumps``.

    Raises:
        TypeError: it is not plain data.
        RecursionError: it contains itself, or is nested too deeply.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is int:
        return value if value.bit_length() <= _LONG_BITS else {"int": hex(value)}
    if kind is list:
        return [encode(item) for item in value]
    for base, plain in _SCALARS:
        if isinstance(value, base):
            return encode(plain(value))
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in dict.items(value)]}
    for name, base in _SEQUENCES.items():
        if isinstance(value, base):
            items = [encode(item) for item in base.__iter__(value)]  # type: ignore[attr-defined]
            return items if base is list else {name: items}
    for name, (base, write) in _WRITTEN.items():
        if kind is base:
            return {name: write(value)}
    if _is_numpy_scalar(value) and type(plain_value := value.item()) in (_PLAIN | {int}):
        return encode(plain_value)
    raise TypeError(f"a result of type {kind.__name__} is not a plain value")


def _is_numpy_scalar(value: Any) -> bool:
    """Whether it is a NumPy scalar. NumPy is used only if the program has imported it."""
    return "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].generic)
