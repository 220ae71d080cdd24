"""Converts Python values to JSON without loss.

The other direction is safe for untrusted JSON, because it makes plain data only.

Scalars and lists are encoded as themselves, anything else as an object with one key, its type: ``{"tuple": [1, 2]}``. A
subclass is encoded as its base (a named tuple as a tuple, a Counter as a dictionary) and a NumPy scalar as a Python
number, so the reading side never calls a method that a program wrote. Pickle is not safe, because the objects that it
can build are hard to limit.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, NoReturn

_OBJECT = "object"
# Type -> plain form, by the base type's own methods: a subclass may override its methods.
_SCALARS: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (bool, bool),
    (int, lambda value: int.__add__(value, 0)),
    (float, lambda value: float.__mul__(value, 1.0)),
    (str, lambda value: str.__getitem__(value, slice(None))),
)
_SEQUENCES: dict[str, type] = {
    "list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque, "bytes": bytes,
    "bytearray": bytearray,
}  # fmt: skip
_WRITTEN: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "complex": (complex, lambda v: [v.real, v.imag], lambda parts: complex(*parts)),
    "Decimal": (Decimal, str, Decimal),
    "Fraction": (Fraction, lambda v: [v.numerator, v.denominator], lambda parts: Fraction(*parts)),
    "range": (range, lambda v: [v.start, v.stop, v.step], lambda parts: range(*parts)),
}
_TYPES = {kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict)}
_PLAIN = frozenset({type(None), bool, int, float, str})


def refuse(value: object) -> NoReturn:
    """For ``encode``, if only plain values are allowed. Raises ``TypeError``."""
    raise TypeError(f"a result of type {type(value).__name__} is not a plain value")


def encode(value: Any, number_of: Callable[[Any], int] = refuse) -> Any:
    """Returns ``value`` in a form for ``json.dumps``.

    Args:
        value: any object.
        number_of: gives each object that is not plain data a number, by which the other side refers to it.

    Raises:
        RecursionError: it contains itself, or is nested too deeply.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is list:
        return [encode(item, number_of) for item in value]
    if any(value is known for known in _TYPES.values()):
        return {"type": value.__name__}
    for base, plain in _SCALARS:
        if isinstance(value, base):
            return plain(value)
    if isinstance(value, dict):
        pairs = dict.items(value)
        return {"dict": [[encode(key, number_of), encode(item, number_of)] for key, item in pairs]}
    for name, base in _SEQUENCES.items():
        if isinstance(value, base):
            items = [encode(item, number_of) for item in base.__iter__(value)]  # type: ignore[attr-defined]
            return items if base is list else {name: items}
    for name, (base, write, _) in _WRITTEN.items():
        if kind is base:
            return {name: write(value)}
    if _is_numpy_scalar(value) and type(plain := value.item()) in _PLAIN:
        return plain
    return {_OBJECT: number_of(value)}


def _is_numpy_scalar(value: Any) -> bool:
    """Whether it is a NumPy scalar. NumPy is used only if the program has imported it."""
    return "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].generic)


def decode(value: Any, object_of: Callable[[int], Any] = refuse) -> Any:
    """The inverse of ``encode``. ``object_of`` maps a number to the reference of its object.

    Raises:
        ValueError, TypeError, KeyError, ArithmeticError, RecursionError: ``value`` did not come from ``encode``.
    """
    if isinstance(value, list):
        return [decode(item, object_of) for item in value]
    if not isinstance(value, dict):
        return value
    ((name, content),) = value.items()
    if name == _OBJECT:
        return object_of(content)
    if name == "type":
        return _TYPES[content]
    if name == "dict":
        return {decode(key, object_of): decode(item, object_of) for key, item in content}
    if name in _SEQUENCES:
        return _SEQUENCES[name]([decode(item, object_of) for item in content])
    if name in _WRITTEN:
        return _WRITTEN[name][2](content)
    raise ValueError(f"no type is called {name!r}")
